"""What each layer costs: a C-FIND with one match over HTTP, and with TLS, identity, audit, metrics, JSON logs.

Usage: python -m bench.layers [--requests 300] [--engines native,dcmtk] [--only bare,jwt,all] [--chunk 10]

For each way a daemon of its own, all at once, before one dcmqrscp; one client asks them in turn, ``chunk`` questions
each, in another order each round. ``forwarded``: through a forwarder that ends no TLS, to compare ``dimse-tls`` with,
which goes through the same one with TLS. ``http-new``, ``https-new``: a new connection for each question. ``metrics``:
/metrics is asked for before every third chunk. ``all``: HTTPS, DIMSE TLS, jwt_auth, authorize, audit to file and
collector, metrics, JSON log. Ratios are medians of those of the rounds, against ``bare`` (``https-new``: against
``http-new``; ``dimse-tls``: against ``forwarded``); CPU is that of the daemon's threads, without its children.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from base64 import b64encode
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from harmonyd.passwords import hash_password
from harmonyd.testing.certificates import Authority, Issued, client_context, server_context
from harmonyd.testing.config_files import write_config
from harmonyd.testing.daemon import RunningDaemon
from harmonyd.testing.data import MadeStudy, make_study
from harmonyd.testing.pacs import RunningPacs
from harmonyd.testing.processes import end_group, free_port, port_is_free, wait_until

WAYS = {
    "bare": (),
    "http-new": ("new",),
    "https": ("https",),
    "https-new": ("https", "new"),
    "forwarded": ("forwarded",),
    "dimse-tls": ("tls",),
    "basic": ("basic",),
    "jwt": ("jwt",),
    "basic+authorize": ("basic", "authorize"),
    "audit-file": ("audit",),
    "audit-file+tls": ("audit", "collector"),
    "metrics": ("metrics",),
    "json-log": ("json",),
    "all": ("https", "tls", "jwt", "authorize", "audit", "collector", "metrics", "json"),
}
AGAINST = {"https-new": "http-new", "dimse-tls": "forwarded"}
PASSWORD = "correct horse battery staple"
Headers = Mapping[str, str]


@dataclass
class World:
    """What all daemons share."""

    folder: Path
    pacs: RunningPacs
    study: MadeStudy
    ca: Authority
    own: Issued
    forwarded: int
    """Port of the forwarder to the PACS."""
    tls: int
    """The same with TLS."""
    collector: int
    public_key: Path
    token: str

    def headers(self, layers: tuple[str, ...]) -> dict[str, str]:
        if "jwt" in layers:
            return {"Authorization": f"Bearer {self.token}"}
        if "basic" in layers:
            return {"Authorization": "Basic " + b64encode(f"ann:{PASSWORD}".encode()).decode()}
        return {}


@contextmanager
def world(folder: Path) -> Iterator[World]:
    study = make_study(folder / "made", 1, size=16)
    ca = Authority(folder)
    own = ca.issue("server")
    key = rsa.generate_private_key(65537, 2048)
    public_key = folder / "issuer.pem"
    public_key.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    now = int(time.time())
    claims = {"sub": "ann", "iss": "bench", "aud": "harmonyd", "exp": now + 7200, "roles": ["reader"]}
    token = jwt.encode(claims, key, algorithm="RS256")
    ports = free_port(), free_port(), free_port()
    with RunningPacs(folder / "pacs", files=study.files) as pacs, helper(pacs.port, ports, own):
        yield World(folder, pacs, study, ca, own, *ports, public_key, token)


@contextmanager
def helper(pacs: int, ports: tuple[int, int, int], own: Issued) -> Iterator[None]:
    """The forwarders and the collector, in a process of their own."""
    argv = [sys.executable, "-m", "bench.layers", "--helper", *map(str, (pacs, *ports, own.cert, own.key))]
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        wait_until(lambda: not port_is_free(ports[2]), "forwarders and collector listen")
        yield
    finally:
        end_group(process)


def help_out(pacs: str, forwarded: str, tls: str, collector: str, cert: str, key: str) -> None:
    """The helper's main."""

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_pacs = await asyncio.open_connection("127.0.0.1", int(pacs))
        await asyncio.gather(pass_on(reader, to_pacs[1]), pass_on(to_pacs[0], writer))

    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(65536):
            pass
        writer.close()

    async def serve() -> None:
        context = server_context(Issued(Path(cert), Path(key)))
        await asyncio.start_server(forward, "127.0.0.1", int(forwarded))
        await asyncio.start_server(forward, "127.0.0.1", int(tls), ssl=context)
        await asyncio.start_server(swallow, "127.0.0.1", int(collector), ssl=context)
        await asyncio.Event().wait()

    asyncio.run(serve())


def configured(name: str, layers: tuple[str, ...], world: World) -> Path:
    """The configuration of the daemon with these layers."""
    folder = world.folder / name
    port = world.tls if "tls" in layers else world.forwarded if "forwarded" in layers else world.pacs.port
    backend: dict[str, Any] = {"aet": world.pacs.aet, "host": "127.0.0.1", "port": port}
    if "tls" in layers:
        backend |= {"use_tls": True, "tls": {"ca_file": str(world.ca.cert)}}
    middleware: dict[str, Any] = {}
    if "basic" in layers:
        user = {"password_hash": hash_password(PASSWORD), "roles": ["reader"]}
        middleware["users"] = {"type": "basic_auth", "users": {"ann": user}}
    if "jwt" in layers:
        middleware["tokens"] = {"type": "jwt_auth", "public_key_path": str(world.public_key), "issuer": "bench",
                                "audience": "harmonyd"}  # fmt: skip
    if "authorize" in layers:
        middleware["rules"] = {"type": "authorize", "rules": [{"roles": ["reader"], "allow": ["find", "retrieve"]}]}
    collector = {"syslog": {"host": "127.0.0.1", "port": world.collector, "tls": {"ca_file": str(world.ca.cert)}}}
    sections: dict[str, Any] = {
        "proxy": {"log_level": "info"},
        "logging": {"format": "json" if "json" in layers else "text"},
        "telemetry": {"metrics": "metrics" in layers},
    }
    if "audit" in layers:
        sections["audit"] = {"file": "audit.xml", **(collector if "collector" in layers else {})}
    if "https" in layers:
        tls = {"cert_file": str(world.own.cert), "key_file": str(world.own.key)}
        sections["network"] = {"default": {"http": {"tls": tls}}}
    return write_config(
        folder,
        http_port=free_port(),
        endpoints={"http": {"service": "http", "path_prefix": "/dicom", "backend_in_path": True}},
        backends={
            engine: {**backend, "engine": engine, "incoming_store_port": free_port()} for engine in ("native", "dcmtk")
        },
        middleware=middleware,
        sections=sections,
    )


# --- measuring


class Asking:
    """A client of one daemon."""

    def __init__(self, layers: tuple[str, ...], world: World, daemon: RunningDaemon) -> None:
        self._layers = layers
        self._daemon = daemon
        self._headers = {"Content-Type": "application/json", **world.headers(layers)}
        keys = {"StudyInstanceUID": world.study.study_uid, "SeriesInstanceUID": world.study.series_uids[0]}
        self._body = json.dumps({"level": "IMAGE", **keys, "SOPInstanceUID": "", "InstanceNumber": ""})
        self._connection: HTTPConnection | None = None
        self._chunks = 0

    def _connected(self) -> HTTPConnection:
        if self._connection is None or "new" in self._layers:
            if self._connection is not None:
                self._connection.close()
            self._connection = self._daemon.connect()
            self._connection.connect()
            self._connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self._connection

    def chunk(self, engine: str, count: int) -> tuple[list[float], float]:
        """Milliseconds of each question; processor time of the daemon for all, in milliseconds."""
        if "metrics" in self._layers and self._chunks % 3 == 0:
            assert self._daemon.http("GET", "/metrics").status == 200
        self._chunks += 1
        before, times = cpu_ms(self._daemon.pid), []
        for _ in range(count):
            began_at = time.perf_counter()
            connection = self._connected()
            connection.request("POST", f"/dicom/{engine}/find", self._body, self._headers)
            answer = connection.getresponse()
            said = answer.read()
            times.append(1000 * (time.perf_counter() - began_at))
            if answer.status != 200 or json.loads(said)["count"] != 1:
                raise RuntimeError(f"{answer.status} {said[:500]!r}")
        return times, cpu_ms(self._daemon.pid) - before


def cpu_ms(pid: int) -> float:
    """What its threads have used of a processor, to the nanosecond (threads that have ended are not counted)."""
    return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e6


@dataclass
class Found:
    times: list[float] = field(default_factory=list)
    rounds: list[float] = field(default_factory=list)
    """Medians."""
    cpu: list[float] = field(default_factory=list)
    """A question, in each round."""


def measure(asking: Mapping[str, Asking], engine: str, requests: int, chunk: int) -> dict[str, Found]:
    found = {name: Found() for name in asking}
    for each in asking.values():
        each.chunk(engine, chunk)
    order = list(asking)
    for _ in range(-(-requests // chunk)):
        random.shuffle(order)
        for name in order:
            times, cpu = asking[name].chunk(engine, chunk)
            found[name].times += times
            found[name].rounds.append(statistics.median(times))
            found[name].cpu.append(cpu / chunk)
    return found


def print_rows(engine: str, found: Mapping[str, Found]) -> None:
    print(f"| {engine} | median, ms | ratio (quartiles) | CPU, ms | CPU, ratio |\n|---|---|---|---|---|")
    for name, each in found.items():
        base = found.get(AGAINST.get(name, "bare"), each)
        ratios = statistics.quantiles([one / other for one, other in zip(each.rounds, base.rounds, strict=True)], n=4)
        cpu, cpu_base = statistics.median(each.cpu), statistics.median(base.cpu)
        print(f"| {name} | {statistics.median(each.times):.2f} | {ratios[1]:.2f} ({ratios[0]:.2f}-{ratios[2]:.2f})"
              f" | {cpu:.2f} | {cpu / cpu_base:.2f} |", flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--chunk", type=int, default=10)
    parser.add_argument("--engines", default="native,dcmtk")
    parser.add_argument("--only", default=",".join(WAYS))
    parser.add_argument("--helper", nargs=6, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.helper:
        return help_out(*options.helper)
    scratch = Path(tempfile.mkdtemp(prefix="bench-"))
    try:
        with world(scratch) as shared, ExitStack() as stack:
            asking = {}
            for name in options.only.split(","):
                layers = WAYS[name]
                tls = client_context(shared.ca) if "https" in layers else None
                daemon = stack.enter_context(RunningDaemon(configured(name, layers, shared), tls=tls))
                asking[name] = Asking(layers, shared, daemon)
            for engine in options.engines.split(","):
                print_rows(engine, measure(asking, engine, options.requests, options.chunk))
    finally:
        shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
