"""What the end-to-end tests of DICOMweb share: a gateway over a PACS, dicomweb-client, and plain requests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from dicomweb_client import DICOMwebClient
from pydicom import Dataset, dcmread

from harmonyd.testing.config_files import write_config
from harmonyd.testing.daemon import RunningDaemon
from harmonyd.testing.pacs import RunningPacs
from harmonyd.testing.processes import free_port

ENGINES = ("native", "dcmtk")
PREFIX = "/dicomweb"


def pacs_options(pacs: RunningPacs, engine: str, **options: Any) -> dict[str, Any]:
    """Options of a dicom backend for a dcmqrscp."""
    return {"engine": engine, "aet": pacs.aet, "host": "127.0.0.1", "port": pacs.port, **options}


@contextmanager
def dicomweb_over(
    folder: Path,
    backend: dict[str, Any],
    sections: dict[str, Any] | None = None,
    backend_name: str = "pacs",
    **options: Any,
) -> Iterator[Gateway]:
    """A daemon with a DICOMweb endpoint over one backend; ``sections`` are tables of config.toml."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    endpoint = {"service": "dicomweb", "path_prefix": PREFIX, "public_url": f"http://127.0.0.1:{port}", **options}
    endpoints = {"web": endpoint}
    backends = {backend_name: backend}
    config = write_config(folder, http_port=port, backends=backends, endpoints=endpoints, sections=sections)
    with RunningDaemon(config) as running:
        yield Gateway(running, port)


class Gateway:
    """A running DICOMweb endpoint."""

    def __init__(self, daemon: RunningDaemon, port: int) -> None:
        self.daemon = daemon
        self.port = port
        self.url = f"http://127.0.0.1:{port}{PREFIX}"
        self.client = DICOMwebClient(self.url)

    def ask(
        self, path: str, accept: str | None = None, *, method: str = "GET", body: bytes | None = None, **headers: str
    ) -> Reply:
        """One request; ``path`` is what follows the prefix, in the form it has on the wire."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=30)
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        if accept is not None:
            fields["Accept"] = accept
        try:
            connection.request(method, PREFIX + path, body=body, headers=fields)
            response = connection.getresponse()
            return Reply(response.status, response.headers, response.read())
        finally:
            connection.close()


class Reply:
    """Status, headers and body."""

    def __init__(self, status: int, headers: Any, body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    def parts(self) -> list[tuple[dict[str, str], bytes]]:
        """The parts of a multipart body that is whole: header fields in lower case, and content."""
        boundary = self.headers.get_param("boundary").encode()
        before, *parts, after = (b"\r\n" + self.body).split(b"\r\n--" + boundary)
        assert (before, after.strip()) == (b"", b"--")
        return [_part(part) for part in parts]


def _part(part: bytes) -> tuple[dict[str, str], bytes]:
    head, _, content = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
    fields = (line.partition(":") for line in head.decode().split("\r\n"))
    return {name.lower(): value.strip() for name, _, value in fields}, content


def originals(files: Iterator[Path] | list[Path]) -> dict[str, Dataset]:
    """Data sets by SOP Instance UID."""
    return {str(ds.SOPInstanceUID): ds for ds in map(dcmread, files)}
