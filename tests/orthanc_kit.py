"""A real Orthanc for tests, with nothing but what it needs to send and to receive."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from harmonyd.testing.processes import end_group, free_port, log_tail, wait_until

DICOMWEB_PLUGIN = "/usr/share/orthanc/plugins/libOrthancDicomWeb.so"


def program() -> str:
    """Its path; Debian puts it where a user's PATH does not lead."""
    found = shutil.which("Orthanc", path="/usr/local/bin:/usr/bin:/usr/local/sbin:/usr/sbin")
    if found is None:
        raise RuntimeError("there is no Orthanc: 'make orthanc' installs it")
    return found


class Orthanc:
    """As a context manager: answers REST when entered, gone when left. ``modalities``: AE titles and their ports.

    ``tls``: certificate, key, and trusted certificates; then it speaks TLS in both roles, and wants a certificate.
    ``dicomweb_user``: name and password; then it has the DICOMweb plug-in, and who asks over HTTP needs these.
    """

    def __init__(
        self,
        folder: Path,
        modalities: Mapping[str, int] | None = None,
        tls: tuple[Path, Path, Path] | None = None,
        dicomweb_user: tuple[str, str] | None = None,
    ) -> None:
        self._tls = tls
        self._user = dicomweb_user
        self.port = free_port()
        self._http_port = free_port()
        self._folder = folder
        self.modalities = dict(modalities or {})
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def dicomweb_url(self) -> str:
        """Of its DICOMweb service."""
        return f"http://127.0.0.1:{self._http_port}/dicom-web"

    @property
    def backend(self) -> dict[str, Any]:
        """Options of a backend that leads here."""
        return {"aet": "ORTHANC", "host": "127.0.0.1", "port": self.port}

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True)
        config = self._folder / "orthanc.json"
        config.write_text(json.dumps(self._configuration()))
        with (self._folder / "orthanc.log").open("wb") as log:
            self._process = subprocess.Popen(
                [program(), str(config)], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        try:
            wait_until(self._answers, "Orthanc answers", 40)
        except TimeoutError as error:
            self.__exit__()
            raise RuntimeError(f"{error}\n{log_tail(self._folder / 'orthanc.log')}") from error
        return self

    def __exit__(self, *error: object) -> None:
        if self._process is not None:
            end_group(self._process, grace_secs=20)
            self._process = None

    def _configuration(self) -> dict[str, Any]:
        return {
            "Name": "test",
            "StorageDirectory": str(self._folder / "storage"),
            "IndexDirectory": str(self._folder / "index"),
            "Plugins": [] if self._user is None else [DICOMWEB_PLUGIN],
            "RegisteredUsers": {} if self._user is None else dict([self._user]),
            "HttpPort": self._http_port,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": self._user is not None,
            "DicomAet": "ORTHANC",
            "DicomPort": self.port,
            "DicomAlwaysAllowStore": True,
            "UnknownSopClassAccepted": True,
            "DicomModalities": {
                aet: {"AET": aet, "Host": "127.0.0.1", "Port": port, "UseDicomTls": self._tls is not None}
                for aet, port in self.modalities.items()
            },
            **self._secured(),
        }

    def _secured(self) -> dict[str, Any]:
        if self._tls is None:
            return {}
        cert, key, trusted = map(str, self._tls)
        files = {"DicomTlsCertificate": cert, "DicomTlsPrivateKey": key, "DicomTlsTrustedCertificates": trusted}
        return {"DicomTlsEnabled": True, "DicomTlsRemoteCertificateRequired": True, **files}

    def _answers(self) -> bool:
        if self._process is not None and self._process.poll() is not None:
            raise RuntimeError(f"Orthanc has ended:\n{log_tail(self._folder / 'orthanc.log')}")
        try:
            return bool(self.rest("GET", "/system"))
        except OSError:
            return False

    # --- its REST interface

    def rest(self, method: str, path: str, body: bytes | None = None) -> bytes:
        """One request; its answer. Raises ``OSError`` when that is not a success."""
        request = urllib.request.Request(f"http://127.0.0.1:{self._http_port}{path}", data=body, method=method)
        if self._user is not None:
            request.add_header("Authorization", "Basic " + base64.b64encode(":".join(self._user).encode()).decode())
        with urllib.request.urlopen(request, timeout=30) as answer:
            return bytes(answer.read())

    def add(self, path: Path) -> str:
        """Upload a file; Orthanc's id for it."""
        return str(json.loads(self.rest("POST", "/instances", path.read_bytes()))["ID"])

    def send(self, aet: str, ids: list[str]) -> None:
        """C-STORE to a modality. Raises ``OSError`` unless all was acknowledged."""
        self.rest("POST", f"/modalities/{aet}/store", json.dumps(ids).encode())

    def files(self) -> list[bytes]:
        """All that it holds."""
        ids = json.loads(self.rest("GET", "/instances"))
        return [self.rest("GET", f"/instances/{id_}/file") for id_ in ids]
