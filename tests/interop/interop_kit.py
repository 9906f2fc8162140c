"""What the tests against other implementations share: a study in every transfer syntax, a gateway without HTTP."""

from __future__ import annotations

import json
import subprocess
import uuid
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

from pydicom import Dataset, dcmread
from pydicom.encaps import generate_frames
from twisted.internet.task import deferLater

from harmonyd.dimse.engine import (
    Arrival,
    Association,
    Instance,
    MoveReceiver,
    OperationContext,
    Outcome,
    Query,
    QueryLevel,
    QueryModel,
    RemoteNode,
    StoreResult,
    StoreScp,
    StoreScpConfig,
)
from harmonyd.dimse.native.engine import NativeEngine
from harmonyd.dimse.part10 import read_header
from harmonyd.dimse.threads import in_thread
from harmonyd.testing.data import make_ct, shipped_folder, uid_for
from harmonyd.testing.processes import free_port

STUDY = uid_for("interop")
PATIENT = "INTEROP"
SCU_AET, SCP_AET, MOVE_AET = "HARMONY_SCU", "HARMONY_SCP", "HARMONY_MOVE"
TIMEOUT_SECS = 40.0

_FILES = (
    "CT_small.dcm",  # Explicit VR Little Endian
    "MR_small_implicit.dcm",  # Implicit VR Little Endian
    "MR_small_expb.dcm",  # Explicit VR Big Endian
    "liver_expb_1frame.dcm",  # the same, a segmentation with sequences
    "image_dfl.dcm",  # Deflated Explicit VR Little Endian
    "MR_small_RLE.dcm",  # RLE Lossless
    "SC_rgb_rle_2frame.dcm",  # the same, two frames
    "SC_rgb_jpeg_dcmtk.dcm",  # JPEG Baseline
    "examples_ybr_color.dcm",  # the same, thirty frames of ultrasound
    "JPEG-lossy.dcm",  # JPEG Extended
    "SC_rgb_jpeg_gdcm.dcm",  # JPEG Lossless
    "MR_small_jpeg_ls_lossless.dcm",  # JPEG-LS Lossless
    "JPEGLSNearLossless_16.dcm",  # JPEG-LS Near-Lossless
    "MR_small_jp2klossless.dcm",  # JPEG 2000 Lossless
    "JPEG2000.dcm",  # JPEG 2000
    "rtplan.dcm",  # Implicit VR Little Endian, no image
    "test-SR.dcm",  # a structured report
)
IMPLICIT, EXPLICIT, BIG_ENDIAN = (f"1.2.840.10008.1.2{end}" for end in ("", ".1", ".2"))
UNCOMPRESSED = frozenset({IMPLICIT, EXPLICIT, BIG_ENDIAN})
DEFLATED, RLE = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.5"
JPEG_BASELINE, JPEG_EXTENDED, JPEG_LOSSLESS, JPEG_LS, JPEG_LS_NEAR, JPEG_2000_LOSSLESS, JPEG_2000 = (
    f"1.2.840.10008.1.2.4.{end}" for end in (50, 51, 70, 80, 81, 90, 91)
)


# --- data


@dataclass(frozen=True, slots=True)
class Sample:
    """One object in a file."""

    path: Path
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str

    @property
    def data_set(self) -> bytes:
        """Its bytes."""
        return data_set_of(self.path)


def make_samples(folder: Path) -> list[Sample]:
    """One study with an object in every transfer syntax that pydicom ships, and a CT of two megabytes."""
    folder.mkdir()
    paths = [_as_sample(name, folder / f"{number:02}.dcm") for number, name in enumerate(_FILES)]
    big = folder / "big.dcm"
    make_ct(big, study_uid=STUDY, series_uid=uid_for("interop/big"), instance_number=1, patient_id=PATIENT, size=1024)
    return [sample_of(path) for path in [*paths, big]]


def sample_of(path: Path) -> Sample:
    header = read_header(path)
    return Sample(path, header.sop_class_uid, header.sop_instance_uid, header.transfer_syntax_uid)


def _as_sample(name: str, target: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds = dcmread(shipped_folder() / name)
        ds.StudyInstanceUID = STUDY
        ds.PatientID = PATIENT
        ds.PatientName, ds.StudyDate, ds.StudyTime = "Doe^Interop", "20240229", "101500"
        ds.setdefault("Modality", "OT")
        ds.SeriesInstanceUID = uid_for(f"interop/{ds.Modality}")
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = uid_for(f"interop/{name}")
        ds.save_as(target)
    return target


def data_set_of(path: Path) -> bytes:
    """The bytes of a Part 10 file behind its file meta information."""
    return path.read_bytes()[read_header(path).data_set_at :]


def identical(samples: Iterable[Sample], files: Iterable[Path]) -> None:
    """Each sample is there once, in its transfer syntax and with exactly its bytes, and nothing else."""
    found = {header.sop_instance_uid: (header, path) for path in files for header in [read_header(path)]}
    wanted = {sample.sop_instance_uid: sample for sample in samples}
    assert found.keys() == wanted.keys()
    for uid, sample in wanted.items():
        header, path = found[uid]
        assert header.transfer_syntax_uid == sample.transfer_syntax_uid, sample.path.name
        assert data_set_of(path) == sample.data_set, f"{sample.path.name} ({sample.transfer_syntax_uid})"


def equal(samples: Iterable[Sample], files: Iterable[Path], *, converts: Collection[str] = ()) -> None:
    """As ``identical``, but that the peer writes elements anew, and may convert among these transfer syntaxes."""
    found = {header.sop_instance_uid: (header, path) for path in files for header in [read_header(path)]}
    wanted = {sample.sop_instance_uid: sample for sample in samples}
    assert found.keys() == wanted.keys()
    for uid, sample in wanted.items():
        header, path = found[uid]
        if sample.transfer_syntax_uid in converts:
            assert header.transfer_syntax_uid in converts, sample.path.name
        else:
            assert header.transfer_syntax_uid == sample.transfer_syntax_uid, sample.path.name
        assert_same_elements(dcmread(sample.path), dcmread(path), sample.path.name)


def arrived(samples: Iterable[Sample], files: Iterable[Path], *, converts: Collection[str] = ()) -> None:
    """As ``equal``, but that a peer may also spell numbers anew: Pixel Data is the same."""
    found = {header.sop_instance_uid: (header, path) for path in files for header in [read_header(path)]}
    wanted = {sample.sop_instance_uid: sample for sample in samples}
    assert found.keys() == wanted.keys()
    for uid, sample in wanted.items():
        header, path = found[uid]
        is_same = header.transfer_syntax_uid == sample.transfer_syntax_uid
        assert is_same or {header.transfer_syntax_uid, sample.transfer_syntax_uid} <= {*converts}, sample.path.name
        one, other = (_pixels(dcmread(each)) for each in (sample.path, path))
        assert one == other, sample.path.name


def _pixels(ds: Dataset) -> Any:
    """Pixel Data, of compressed ones without regard to how frames are cut into fragments."""
    if (
        "PixelData" not in ds
        or not ds.file_meta.TransferSyntaxUID.is_compressed
        or ds.file_meta.TransferSyntaxUID == DEFLATED
    ):
        return plain(ds).get("(7FE0,0010)")
    frames = generate_frames(ds.PixelData, number_of_frames=int(ds.get("NumberOfFrames", 1)))
    return [frame.rstrip(b"\0") for frame in frames]


def assert_same_elements(one: Dataset, other: Dataset, name: str) -> None:
    """Element for element, but for group lengths and trailing padding, which peers drop or add."""
    first, second = (plain(ds) for ds in (one, other))
    differing = {key for key in first.keys() | second.keys() if first.get(key) != second.get(key)}
    assert not differing, f"{name}: {sorted(differing)}"


def plain(ds: Dataset) -> dict[str, Any]:
    """The elements as values that can be compared: Pixel Data in little endian bytes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {
            f"{element.tag}": _value(ds, element)
            for element in ds
            if element.tag.element != 0 and element.tag not in (0xFFFCFFFC, 0x00080001)
        }


def _value(ds: Dataset, element: Any) -> Any:
    if element.VR == "SQ":
        return [plain(item) for item in element.value]
    if element.tag == 0x7FE00010 and not ds.original_encoding[1] and ds.get("BitsAllocated") == 16:
        swapped = bytearray(element.value)
        swapped[0::2], swapped[1::2] = swapped[1::2], swapped[0::2]
        return bytes(swapped)
    if isinstance(element.value, bytes):
        return element.value.rstrip(b"\0 ")
    return str(element.value).rstrip("\0 ")


# --- a gateway without HTTP


class Taken:
    """Instead of a spool: keeps what it gets in a folder. Implements ``ObjectHandler`` and ``Admission``."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self.arrivals: list[Arrival] = []

    async def __call__(self, arrivals: Sequence[Arrival]) -> None:
        for arrival in arrivals:
            target = self._folder / uuid.uuid4().hex
            arrival.instance.path.rename(target)
            self.arrivals.append(replace(arrival, instance=replace(arrival.instance, path=target)))

    async def damaged(self, path: Path, association: Association, reason: str) -> None:
        raise AssertionError(f"{path.name} is damaged: {reason}")

    def refusal(self) -> str | None:
        return None

    def must_end(self) -> bool:
        return False

    def subscribe(self, changed: Callable[[], None]) -> Callable[[], None]:
        return lambda: None

    @property
    def files(self) -> list[Path]:
        return [arrival.instance.path for arrival in self.arrivals]


@dataclass(frozen=True, slots=True)
class Retrieved:
    """What a C-GET or C-MOVE brought."""

    instances: tuple[Instance, ...]
    outcome: Outcome

    @property
    def files(self) -> list[Path]:
        return [instance.path for instance in self.instances]


class Gateway:
    """A native engine that runs in the tests' reactor. ``move_port``: where C-MOVE delivers, to HARMONY_MOVE."""

    def __init__(self, reactor: Any, folder: Path, move_port: int) -> None:
        self.reactor = reactor
        self.move_port = move_port
        self.engine = NativeEngine(reactor, storage=folder / "storage")
        self.taken = Taken(folder / "taken")
        self._scp: StoreScp | None = None

    async def receive(self, port: int = 0, **options: Any) -> int:
        """Start a store SCP that answers to HARMONY_SCP; its port."""
        port = port or free_port()
        config = StoreScpConfig("scp", SCP_AET, port=port, **{"bind_addr": "127.0.0.1", **options})
        self._scp = self.engine.store_scp(config, self.taken, self.taken)
        await self._scp.start()
        return port

    async def close(self) -> None:
        if self._scp is not None:
            await self._scp.stop()
        await self.engine.close()

    def op(self, secs: float = TIMEOUT_SECS) -> OperationContext:
        id_ = uuid.uuid4().hex
        return OperationContext(id_, id_, deadline=self.reactor.seconds() + secs)

    async def echo(self, remote: RemoteNode) -> Outcome:
        return await self.engine.echo(remote, self.op())

    async def find(self, remote: RemoteNode, level: str = "STUDY", **keys: Any) -> list[dict[str, Any]]:
        """Matches in the DICOM JSON Model, as keyword → value(s)."""
        keys.setdefault("PatientID", PATIENT)
        stream = self.engine.find(remote, query(level, **keys), self.op())
        async with aclosing(aiter(stream)) as matches:  # type: ignore[type-var]
            found = [Dataset.from_json(json.loads(match.json)) async for match in matches]
        assert stream.outcome.complete
        return [{element.keyword: element.value for element in ds} for ds in found]

    async def get(self, remote: RemoteNode, level: str = "STUDY", **keys: Any) -> Retrieved:
        keys.setdefault("StudyInstanceUID", STUDY)
        return await self._retrieved(self.engine.get(remote, query(level, **keys), self.op()))

    async def move(self, remote: RemoteNode, level: str = "STUDY", **keys: Any) -> Retrieved:
        keys.setdefault("StudyInstanceUID", STUDY)
        receiver = MoveReceiver("native", MOVE_AET, self.move_port)
        return await self._retrieved(self.engine.move(remote, receiver, query(level, **keys), self.op()))

    async def store(self, remote: RemoteNode, files: Iterable[Path | Sample]) -> list[StoreResult]:
        paths = [item.path if isinstance(item, Sample) else item for item in files]
        async with aclosing(aiter(self.engine.store(remote, paths, self.op()))) as results:  # type: ignore[type-var]
            return [result async for result in results]

    async def store_all(self, remote: RemoteNode, files: Iterable[Path | Sample]) -> None:
        """Every one must be answered with Success."""
        results = await self.store(remote, files)
        assert {result.status for result in results} == {0}, [
            (result.sop_class_uid, result.status_text) for result in results if result.status != 0
        ]

    async def in_thread(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        return await in_thread(self.reactor, partial(function, *args, **options))

    async def run(self, *argv: object, env: Mapping[str, str] | None = None) -> str:
        """Run a program that must succeed; what it printed."""
        return str(await self.in_thread(run, *argv, env=env))

    async def until(self, condition: Callable[[], object]) -> None:
        """Return once it holds; the test's deadline bounds the wait."""
        while not condition():
            await deferLater(self.reactor, 0.01)

    async def _retrieved(self, stream: Any) -> Retrieved:
        async with aclosing(aiter(stream)) as instances:
            found = tuple([instance async for instance in instances])
        return Retrieved(found, stream.outcome)


def run(*argv: object, env: Mapping[str, str] | None = None) -> str:
    """Run a program that must succeed; what it printed."""
    done = subprocess.run(
        [str(arg) for arg in argv],
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=TIMEOUT_SECS,
        env=None if env is None else dict(env),
    )
    said = done.stdout.decode("utf-8", "replace")
    assert done.returncode == 0, f"{argv[0]} ended with {done.returncode}:\n{said[-4000:]}"
    return said


def query(level: str, model: QueryModel = QueryModel.STUDY_ROOT, **keys: Any) -> Query:
    ds = Dataset()
    ds.QueryRetrieveLevel = level
    for keyword, value in keys.items():
        setattr(ds, keyword, value)
    return Query(QueryLevel(level), model, ds)


def node(aet: str, port: int, **options: Any) -> RemoteNode:
    given = {"local_aet": SCU_AET, "connect_timeout_secs": 10.0, "association_timeout_secs": 30.0, **options}
    return RemoteNode(aet.lower(), aet, "127.0.0.1", port, **given)


def files_below(folder: Path) -> list[Path]:
    """Part 10 files there."""
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and _is_part10(path)]


def _is_part10(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def part10(content: bytes) -> Dataset:
    return dcmread(BytesIO(content))
