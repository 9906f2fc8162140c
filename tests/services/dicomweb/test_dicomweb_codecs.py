"""Processes that decode pixels: they give what this process would, and what goes wrong in one goes no further."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pydicom.data
import pytest
import pytest_twisted
from pydicom import dcmread
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.threads import deferToThread

from harmonyd import landlock, seccomp
from harmonyd.dimse.elements import MalformedDataset
from harmonyd.errors import DeadlinePassed, NotAcceptable
from harmonyd.services.dicomweb.codec_pool import Codecs
from harmonyd.services.dicomweb.pixel_file import PixelFile
from harmonyd.services.dicomweb.rendering import JPEG, PNG, Rendering, render

SHIPPED = Path(pydicom.data.__file__).parent / "test_files"
RLE, PLAIN = SHIPPED / "MR_small_RLE.dcm", SHIPPED / "CT_small.dcm"
FAKE = """
import os, signal, socket, time
from harmonyd.services.dicomweb.codec_frames import receive, send
sock = socket.socket(fileno=0)
send(sock, {"ready": True, "lacking": []})
while receive(sock, 1) is not None:
    %s
"""
Made = Callable[..., Codecs]


@pytest.fixture
def codecs(started_reactor: Any) -> Iterator[Made]:
    """Make pools; they are closed at the end of the test."""
    made: list[Codecs] = []

    def make(does: str | None = None, **options: Any) -> Codecs:
        if does is not None:
            options["command"] = (sys.executable, "-c", FAKE % does)
        made.append(Codecs(deferToThread, **options))
        return made[-1]

    yield make
    for each in made:
        pytest_twisted.blockon(Deferred.fromCoroutine(each.close()))


def workers() -> list[psutil.Process]:
    """Our children that decode."""
    return [each for each in psutil.Process().children() if "codec_worker" in " ".join(each.cmdline())]


@pytest_twisted.ensureDeferred
async def test_the_same_as_here(codecs: Made, tmp_path: Path) -> None:
    """Pictures, pixels and transcoded objects are those that are made without such a process; one does them all."""
    pool = codecs()
    how = Rendering(window=(40.0, 400.0, "linear"), size=(64, 64))
    for path in (RLE, PLAIN):
        image = PixelFile(path)
        assert await pool.picture(image, 1, PNG, how) == render(image, 1, PNG, how)
        assert await pool.octets(image, 1) == image.octets(1)
    copy = tmp_path / "a.dcm"
    copy.write_bytes(PLAIN.read_bytes())
    made = await pool.transcoded(copy, [JPEG2000Lossless])
    assert dcmread(made).pixel_array.tolist() == dcmread(PLAIN).pixel_array.tolist()
    assert await pool.transcoded(copy, [ExplicitVRLittleEndian]) == copy
    assert len(workers()) == 1
    await pool.close()
    assert not workers()


@pytest_twisted.ensureDeferred
async def test_what_cannot_be_done_is_said(codecs: Made, tmp_path: Path) -> None:
    """What pydicom and the codecs say of data comes as from here, and the process goes on."""
    pool = codecs()
    ds = dcmread(RLE)
    ds.PixelData = ds.PixelData[:200] + b"\xff" * (len(ds.PixelData) - 200)
    ds.save_as(tmp_path / "broken.dcm")
    with pytest.raises((NotAcceptable, MalformedDataset), match=r"decoded|read"):
        await pool.picture(PixelFile(tmp_path / "broken.dcm"), 1, JPEG, Rendering())
    with pytest.raises(NotAcceptable, match=r"1\.2\.3: not a transfer syntax"):
        await pool.transcoded(tmp_path / "broken.dcm", ["1.2.3"])
    assert [path.name for path in tmp_path.iterdir()] == ["broken.dcm"]  # noqa: ASYNC240
    image = PixelFile(tmp_path / "broken.dcm")
    (tmp_path / "broken.dcm").unlink()
    with pytest.raises(FileNotFoundError):
        await pool.octets(image, 1)
    assert len(workers()) == 1


@pytest.mark.parametrize(
    ("does", "said"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL"),
        ("os._exit(3)", "code 3"),
        ("sock.sendall(b'\\xff' * 100)", "was killed"),
        ("send(sock, {'length': -1})", "was killed"),
        ("send(sock, {'length': 2 ** 60})", "was killed"),
        ("sock.sendall(b'\\0\\0\\0\\4true')", "was killed"),
        ("sock.sendall(b'\\0\\0\\0\\4nope')", "was killed"),
        ("sock.sendall(b'\\0\\0\\0\\4no'); os._exit(0)", "code 0"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_codec_that_crashes(codecs: Made, does: str, said: str) -> None:
    """The end of the process, or nonsense from it, is an error for who asked for that picture, and for nobody else."""
    pool = codecs(does)
    for _ in range(2):
        with pytest.raises(MalformedDataset, match=said):
            await pool.octets(PixelFile(RLE), 1)
    assert not pool._idle
    assert not pool._busy


@pytest_twisted.ensureDeferred
async def test_a_codec_that_hangs(codecs: Made) -> None:
    """It is ended after its time; so is one that works when the daemon stops."""
    pool = codecs("time.sleep(1000)", task_secs=0.1)
    with pytest.raises(DeadlinePassed):
        await pool.octets(PixelFile(RLE), 1)
    patient = codecs("time.sleep(1000)", limit=1)
    asked = Deferred.fromCoroutine(patient.octets(PixelFile(RLE), 1))
    while not patient._busy:
        await deferToThread(os.sched_yield)
    await patient.close()
    with pytest.raises(MalformedDataset, match="SIGKILL"):
        await asked


@pytest_twisted.ensureDeferred
async def test_a_defect_of_ours(codecs: Made) -> None:
    """What is not the fault of the object is a failure like any other, and its text is no class of its own choice."""
    pool = codecs("send(sock, {'error': 'SystemExit', 'detail': 'x', 'length': 0})")
    with pytest.raises(RuntimeError, match="by our fault: SystemExit: x"):
        await pool.octets(PixelFile(RLE), 1)
    with pytest.raises(RuntimeError, match="does not start"):
        await codecs(command=("/bin/true",)).octets(PixelFile(RLE), 1)


@pytest_twisted.ensureDeferred
async def test_a_few_at_once(codecs: Made) -> None:
    """Eight pictures need as many processes as are allowed."""
    pool = codecs(limit=2)
    image = PixelFile(RLE)
    made = await gatherResults([Deferred.fromCoroutine(pool.octets(image, 1)) for _ in range(8)])
    assert set(made) == {image.octets(1)}
    assert len(workers()) == 2


@pytest_twisted.ensureDeferred
async def test_what_it_may_do(codecs: Made) -> None:
    """A worker has limits, no new privileges, and a filter for system calls where we know the machine."""
    pool = codecs()
    await pool.octets(PixelFile(RLE), 1)
    (worker,) = workers()
    assert worker.rlimit(psutil.RLIMIT_CORE) == (0, 0)
    assert worker.rlimit(psutil.RLIMIT_AS)[1] == 8 << 30
    status = await deferToThread(Path(f"/proc/{worker.pid}/status").read_text)
    assert "NoNewPrivs:\t1" in status
    assert ("Seccomp:\t2" in status) == seccomp.is_known()
    assert set(worker.environ()) >= {"PYTHONPATH"}
    assert "HOME" not in worker.environ()
    (ready,) = pool._idle
    assert [name for name in ready.lacking if name.startswith("landlock")] == [] or not landlock.abi()
