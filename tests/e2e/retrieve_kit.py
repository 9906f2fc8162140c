"""What the end-to-end tests of retrieves and stores share: reading answers, comparing data sets, watching a daemon."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import psutil
import pytest
from pydicom import Dataset, dcmread

from harmonyd.testing.config_files import ENGINE_VARIABLE
from harmonyd.testing.daemon import Answer, RunningDaemon
from harmonyd.testing.data import make_ct, uid_for
from harmonyd.testing.pacs import RunningPacs
from harmonyd.testing.peer import ScriptedPeer
from harmonyd.testing.processes import wait_until

JSON = "application/json"
MULTIPART = 'multipart/related; type="application/dicom"'
ZIP = "application/zip"
DICOM = "application/dicom"
SHIPPED_SYNTAXES = (
    "CT_small.dcm",
    "MR_small_implicit.dcm",
    "MR_small_bigendian.dcm",
    "image_dfl.dcm",
    "MR_small_RLE.dcm",
    "JPEG-lossy.dcm",
    "SC_rgb_jpeg_gdcm.dcm",
    "JPEGLSNearLossless_08.dcm",
    "MR_small_jpeg_ls_lossless.dcm",
    "JPEG2000.dcm",
    "MR_small_jp2klossless.dcm",
)
"""Files of pydicom, each in another transfer syntax: explicit and implicit little endian, big endian, deflated, and
compressed ones."""


def pacs_backend(pacs: RunningPacs, destination: str = "HARMONY_MOVE", **options: Any) -> dict[str, Any]:
    """Options of a backend at ``pacs`` that can get and move."""
    return {
        "aet": pacs.aet,
        "host": "127.0.0.1",
        "port": pacs.port,
        "move_destination_aet": destination,
        "incoming_store_port": pacs.destinations[destination],
        **options,
    }


def peer_backend(peer: ScriptedPeer, **options: Any) -> dict[str, Any]:
    """Options of a backend at a scripted peer, whose ``destinations`` may name our receiver."""
    given = {"aet": peer.aet, "host": "127.0.0.1", "port": peer.port}
    for aet, port in peer.options.destinations.items():
        given |= {"move_destination_aet": aet, "incoming_store_port": port}
    return {**given, **options}


def post(daemon: RunningDaemon, operation: str, query: Any = None, *, accept: str = JSON, **options: Any) -> Answer:
    """``POST /dicom/<operation>``."""
    headers = {"Accept": accept, **options.pop("headers", {})}
    return daemon.http("POST", f"/dicom/{operation}", json=query or {}, headers=headers, **options)


def together(count: int, call: Any) -> list[Any]:
    """``call(number)`` for ``count`` clients at once; their results in order."""
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(call, range(count)))


# --- data sets --------------------------------------------------------------------------------------------------------


def by_study(files: Iterable[Path]) -> dict[str, dict[str, Path]]:
    """Study Instance UID → SOP Instance UID → file."""
    studies: dict[str, dict[str, Path]] = {}
    for path in files:
        ds = dcmread(path, stop_before_pixels=True)
        studies.setdefault(str(ds.StudyInstanceUID), {})[str(ds.SOPInstanceUID)] = path
    return studies


def read(data: bytes) -> Dataset:
    """A Part 10 file in memory."""
    return dcmread(BytesIO(data))


def assert_same_objects(received: Iterable[bytes], originals: Mapping[str, Path]) -> None:
    """Exactly the originals have arrived, each once, and each as the same data set."""
    datasets = [read(data) for data in received]
    uids = [str(ds.SOPInstanceUID) for ds in datasets]
    assert sorted(uids) == sorted(originals)
    for uid, ds in zip(uids, datasets, strict=True):
        original = dcmread(originals[uid])
        assert ds == original, f"{uid} differs from {originals[uid]}"
        assert ds.file_meta.TransferSyntaxUID == original.file_meta.TransferSyntaxUID


def parts_of(answer: Answer) -> list[bytes]:
    """The bodies of a multipart answer, which must be whole."""
    boundary = answer.headers.get_param("boundary")
    assert isinstance(boundary, str)
    pieces = (b"\r\n" + answer.body).split(b"\r\n--" + boundary.encode())
    assert pieces[0] == b""
    assert pieces[-1] == b"--\r\n"
    heads_and_bodies = [piece.partition(b"\r\n\r\n") for piece in pieces[1:-1]]
    assert all(b"Content-Type: application/dicom\r\n" in head + b"\r\n" for head, _, _ in heads_and_bodies)
    return [body for _, _, body in heads_and_bodies]


def members_of(answer: Answer) -> dict[str, bytes]:
    """The files in a zip answer, whose checksums must be right."""
    with ZipFile(BytesIO(answer.body)) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name) for name in archive.namelist()}


def multipart(parts: Sequence[bytes]) -> dict[str, Any]:
    """Body and headers of a multipart/related request."""
    boundary = "between-the-parts"
    body = b"".join(
        b"--%s\r\nContent-Type: application/dicom\r\n\r\n%s\r\n" % (boundary.encode(), part) for part in parts
    )
    kind = f'multipart/related; type="application/dicom"; boundary={boundary}'
    return {"body": body + b"--%s--\r\n" % boundary.encode(), "headers": {"Content-Type": kind}}


def ct_bytes(folder: Path, number: int = 1, *, study: str = "a study to store", size: int = 64) -> bytes:
    """A made CT instance as bytes."""
    path = folder / f"made-{number}.dcm"
    make_ct(
        path,
        study_uid=uid_for(study),
        series_uid=uid_for(f"{study}/1"),
        instance_number=number,
        patient_id="MADE-CT",
        size=size,
    )
    return path.read_bytes()


# --- a daemon's storage -----------------------------------------------------------------------------------------------


def storage(daemon: RunningDaemon) -> Path:
    options = tomllib.loads(daemon.config.read_text())["storage"]["options"]
    return daemon.config.parent / str(options["path"])


def artifact_folders(daemon: RunningDaemon, operation: str = "*") -> set[Path]:
    """The artifact folders of all operations, or of one kind."""
    return {path for path in storage(daemon).glob(f"dcmtk_{operation}_*") if path.is_dir()}


def quarantined(daemon: RunningDaemon) -> dict[Path, str]:
    """Files in quarantine, and the reason beside each."""
    files = sorted((storage(daemon) / "quarantine").glob("*.dcm"))
    return {path: json.loads(path.with_suffix(".json").read_text())["reason"] for path in files}


def scratch_files(daemon: RunningDaemon) -> list[str]:
    """What operations have left in the scratch folder (DCMTK's only): nothing, once they have ended."""
    files = (storage(daemon) / "run" / "dcmtk").glob("*")
    return sorted(path.name for path in files if not path.name.startswith("dcmtk-"))


def incoming_files(daemon: RunningDaemon) -> list[Path]:
    return [path for path in (storage(daemon) / "incoming").rglob("*") if path.is_file()]


def wait_nothing_incoming(daemon: RunningDaemon) -> None:
    """Wait until every delivered file has been taken or put aside: a receiver may end after the answer has."""
    wait_until(lambda: not incoming_files(daemon), "nothing is left in incoming")


NATIVE = os.environ.get(ENGINE_VARIABLE) == "native"
"""The daemons of this run use the native engine."""
DCMTK_MODES = tuple(pytest.param(mode, marks=pytest.mark.dcmtk) for mode in ("transient", "per-association"))
"""Values of ``store_scp`` beside the usual one; the native engine has one way to receive."""


def outgoing(daemon: RunningDaemon) -> int:
    """How many connections to other nodes the daemon has itself."""
    ours = {connection.laddr.port for connection in psutil.Process(daemon.pid).net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN}  # fmt: skip
    return sum(
        connection.status == psutil.CONN_ESTABLISHED and connection.laddr.port not in ours
        for connection in psutil.Process(daemon.pid).net_connections("tcp")
    )


def under_way(daemon: RunningDaemon) -> int:
    """How many operations run, by the programs or the associations that they have."""
    return outgoing(daemon) if NATIVE else len(tool_processes(daemon))


def tool_processes(daemon: RunningDaemon, *names: str) -> list[psutil.Process]:
    """The daemon's living DCMTK clients (findscu, getscu, movescu, storescu, echoscu; or those named)."""
    wanted = names or ("echoscu", "findscu", "getscu", "movescu", "storescu")
    return [child for child in daemon.children() if _name(child) in wanted]


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.NoSuchProcess:
        return ""


def wait_idle(daemon: RunningDaemon) -> None:
    """Wait until no operation runs and no scratch file is left."""
    wait_until(lambda: not under_way(daemon), "every operation has ended")
    wait_until(lambda: not scratch_files(daemon), "every scratch file is gone")

