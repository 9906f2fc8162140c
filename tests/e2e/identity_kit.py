"""What the end-to-end tests of identity share: a daemon with users, keys and rules in front of a real PACS."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from dicomweb_kit import pacs_options

from harmonyd.passwords import hash_password
from harmonyd.testing.config_files import write_config
from harmonyd.testing.daemon import Answer, RunningDaemon
from harmonyd.testing.data import MadeStudy, make_study, uid_for
from harmonyd.testing.pacs import RunningPacs
from harmonyd.testing.processes import free_port

PASSWORD = "käse:brot"
ROLES = ("admin", "north", "south", "finder", "retriever", "storer", "lone", "nobody")


def key_of(name: str) -> dict[str, str]:
    """The header field with the API key of a subject."""
    return {"X-Site-Key": f"the-key-of-{name}-{'x' * 32}"}


def basic(user: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode("ascii")}


class Issuer:
    """Signs tokens, and serves its key set."""

    def __init__(self) -> None:
        self.keys = {"one": Ed25519PrivateKey.generate()}
        self.asked = 0
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.asked += 1
                data = issuer.key_set()
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/jwks.json"

    def key_set(self) -> bytes:
        algorithm = jwt.algorithms.OKPAlgorithm
        entries = [
            {**json.loads(algorithm.to_jwk(key.public_key())), "kid": kid, "use": "sig"}
            for kid, key in self.keys.items()
        ]
        return json.dumps({"keys": entries}).encode()

    def token(self, kid: str = "one", **changes: Any) -> dict[str, str]:
        """A header field with a token, of which ``changes`` replace claims."""
        claims = {"sub": "tom", "iss": "issuer", "aud": "harmonyd", "exp": int(time.time()) + 600, **changes}
        return {"Authorization": f"Bearer {jwt.encode(claims, self.keys[kid], 'EdDSA', {'kid': kid})}"}

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@dataclass
class Site:
    """The daemon, its two networks, and what the PACS holds."""

    daemon: RunningDaemon
    guarded_port: int
    issuer: Issuer
    north: MadeStudy
    south: MadeStudy
    folder: Path
    users: dict[str, dict[str, str]] = field(default_factory=dict)

    def ask(
        self,
        method: str,
        path: str,
        who: dict[str, str] | str | None = None,
        *,
        document: Any = None,
        body: bytes | None = None,
        address: str = "127.0.0.1",
        port: int | None = None,
        **fields: str,
    ) -> Answer:
        """One request; ``who``: a name with an API key, or header fields."""
        headers = key_of(who) if isinstance(who, str) else dict(who or {})
        headers |= {name.replace("_", "-"): value for name, value in fields.items()}
        if document is not None:
            body = json.dumps(document).encode()
            headers["Content-Type"] = "application/json"
        connection = HTTPConnection("127.0.0.1", port or self.daemon.port, timeout=30, source_address=(address, 0))
        try:
            connection.request(method, path, body=body, headers=headers)
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())
        finally:
            connection.close()

    def find(self, who: Any, prefix: str = "/dicom", **document: Any) -> list[str]:
        """Study Instance UIDs of the matches, each as often as it comes."""
        answer = self.ask("POST", f"{prefix}/find", who, document=document)
        assert answer.status == 200, answer.body
        return [match["0020000D"]["Value"][0] for match in answer.json()["matches"]]


@contextmanager
def site_in(folder: Path) -> Iterator[Site]:
    """A PACS with one study of NORTH-1 and one of SOUTH-1, a daemon in front of it, and an issuer of tokens."""
    north = make_study(folder / "north", 2, study_uid=uid_for("north"), patient_id="NORTH-1", size=16)
    south = make_study(folder / "south", 2, study_uid=uid_for("south"), patient_id="SOUTH-1", size=16)
    with (
        RunningPacs(folder / "pacs", files=[*north.files, *south.files]) as pacs,
        Issuer() as issuer,
    ):
        guarded = free_port()
        config = _config(folder / "config", pacs, issuer, guarded)
        with RunningDaemon(config) as daemon:
            yield Site(daemon, guarded, issuer, north, south, folder)
            assert "Traceback" not in daemon.log


def _config(folder: Path, pacs: RunningPacs, issuer: Issuer, guarded: int) -> Path:
    folder.mkdir()
    keys = {
        name: {"sha256": hashlib.sha256(key_of(name)["X-Site-Key"].encode()).hexdigest(), "roles": [name]}
        for name in ROLES
    }
    hashed = hash_password(PASSWORD)
    users = {
        "jürgen": {"password_hash": hashed, "roles": ["finder"]},
        "ops": {"password_hash": hashed, "roles": ["admin"]},
    }
    everything = ["echo", "find", "retrieve", "store", "forward", "manage"]
    limited = [
        {"roles": [name], "allow": ["find", "retrieve", "store"], "only": {"PatientID": f"{name.upper()}*"}}
        for name in ("north", "south")
    ]
    rules = [
        {"roles": ["admin"], "allow": everything},
        *limited,
        {"roles": ["finder"], "allow": ["find"]},
        {"roles": ["retriever"], "allow": ["retrieve"], "backends": ["pacs", "second"]},
        {"roles": ["storer"], "allow": ["store"]},
        {"roles": ["lone"], "allow": ["find", "retrieve"], "backends": ["second"]},
        {"roles": ["*"], "allow": ["echo", "forward"]},
    ]
    tokens = {"type": "jwt_auth", "jwks_url": issuer.url, "issuer": "issuer", "audience": "harmonyd"}
    middleware = {
        "keys": {"type": "api_key", "optional": True, "header": "X-Site-Key", "keys": keys},
        "users": {"type": "basic_auth", "optional": True, "users": users},
        "tokens": {**tokens, "optional": True},
        "rules": {"type": "authorize", "rules": rules},
        "managing": {"type": "authorize", "rules": [{"roles": ["admin"], "allow": everything}]},
    }
    backend = pacs_options(pacs, "native")
    endpoints = {
        "http": {"service": "http", "path_prefix": "/dicom"},
        "web": {"service": "dicomweb", "path_prefix": "/web", "cors_origins": ["https://viewer.example"]},
        "both": {"service": "http", "path_prefix": "/both"},
        "both-web": {"service": "dicomweb", "path_prefix": "/both-web"},
        "say": {"service": "echo", "path_prefix": "/say"},
        "keep": {"service": "http", "path_prefix": "/keep"},
    }
    common = {"networks": ["default", "guarded"], "middleware": ["keys", "users", "tokens", "rules"]}
    pipelines = {
        "main": {**common, "endpoints": ["http", "web"], "backends": ["pacs"]},
        "both": {**common, "endpoints": ["both", "both-web"], "backends": ["pacs", "second"], "fan_out": True},
        "say": {**common, "endpoints": ["say"], "backends": ["say"]},
        "keep": {**common, "endpoints": ["keep"], "backends": ["keep"]},
    }
    guard = {"http": {"bind_address": "127.0.0.1", "bind_port": guarded}, "middleware": ["keys", "users", "managing"]}
    return write_config(
        folder,
        http_port=free_port(),
        backends={
            "pacs": backend,
            "second": backend,
            "say": {"service": "echo"},
            "keep": {"service": "storage", "path": "kept"},
        },
        endpoints=endpoints,
        middleware=middleware,
        pipelines=pipelines,
        sections={
            "network": {"guarded": guard},
            "management": {"enabled": True, "network": "guarded"},
            "proxy": {"log_level": "info"},
        },
    )
