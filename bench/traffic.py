"""What ``crowd`` and ``soak`` share: HTTP clients on asyncio, answers that are judged, senders, and what a daemon uses.

Nothing here trusts an answer: the objects of a retrieve are compared with those that were loaded, a search with what
there is, and what a sender was told with what its receivers have.
"""

from __future__ import annotations

import asyncio
import email.parser
import hashlib
import itertools
import json
import os
import re
import struct
import subprocess
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, Self

import psutil
from pydicom import dcmread
from pydicom.errors import InvalidDicomError

from harmonyd.testing.data import MadeStudy, make_ct, uid_for
from harmonyd.testing.processes import dcmtk, end_group, free_port, port_is_free, wait_until

ENV = {"PATH": "/usr/bin:/bin", "TCP_NODELAY": "1"}
PARTS = 'multipart/related; type="application/dicom"'
RIGHT = "right"
ANSWER_SECS = 120.0
UNREADABLE = (OSError, ValueError, LookupError, AttributeError, EOFError, struct.error, InvalidDicomError)


# --- HTTP


class Cut(Exception):
    """The answer ended before its end."""


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """One HTTP/1.1 connection that is kept, and opened again when the server closed it between two requests."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self.opened = 0

    async def open(self) -> None:
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 20)
            self.opened += 1

    async def close(self) -> None:
        streams, self._streams = self._streams, None
        if streams is not None:
            streams[1].close()

    async def ask(
        self, method: str, path: str, document: Any = None, accept: str = "application/json"
    ) -> Reply:
        """Raises ``Cut``, OSError, and TimeoutError."""
        body = b"" if document is None else document if isinstance(document, bytes) else json.dumps(document).encode()
        kind = "application/dicom" if isinstance(document, bytes) else "application/json"
        head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\nAccept: {accept}\r\n"
        if document is not None:
            head += f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
        async with asyncio.timeout(ANSWER_SECS):
            for attempt in (1, 2):
                stale = self._streams is not None
                await self.open()
                assert self._streams is not None
                reader, writer = self._streams
                try:
                    writer.write(head.encode() + b"\r\n" + body)
                    await writer.drain()
                    first = await reader.readuntil(b"\r\n\r\n")
                except (asyncio.IncompleteReadError, ConnectionError) as error:
                    await self.close()
                    if stale and attempt == 1 and not getattr(error, "partial", b""):
                        continue  # closed while it was idle
                    raise Cut("no answer at all") from error
                return await self._rest(reader, first)
        raise AssertionError

    async def _rest(self, reader: asyncio.StreamReader, head: bytes) -> Reply:
        line, _, fields = head.partition(b"\r\n")
        parsed = email.parser.BytesHeaderParser().parsebytes(fields)
        headers = {key.lower(): value for key, value in parsed.items()}
        status = int(line.split()[1])
        try:
            body = await _body(reader, headers, status)
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            await self.close()
            raise Cut(f"{status}, and cut") from error
        if headers.get("connection", "").lower() == "close":
            await self.close()
        return Reply(status, headers, body)


async def _body(reader: asyncio.StreamReader, headers: Mapping[str, str], status: int) -> bytes:
    if headers.get("transfer-encoding") != "chunked":
        return await reader.readexactly(0 if status in (204, 304) else int(headers.get("content-length", 0)))
    chunks = []
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        chunks.append((await reader.readexactly(size + 2))[:-2])
    while await reader.readuntil(b"\r\n") != b"\r\n":
        pass
    return b"".join(chunks)


# --- answers


def digest(data: bytes | Path) -> tuple[str, str]:
    """SOP Instance UID, and what stands for the whole data set whatever its file meta information."""
    ds = dcmread(data if isinstance(data, Path) else BytesIO(data))
    return str(ds.SOPInstanceUID), hashlib.sha256(ds.to_json(bulk_data_threshold=1 << 40).encode()).hexdigest()


def _data_set(file: bytes) -> bytes:
    """A Part 10 file without preamble and file meta information."""
    (length,) = struct.unpack_from("<I", file, 140)
    return file[144 + length :]


class Known:
    """A study that the PACS has."""

    def __init__(self, made: MadeStudy) -> None:
        self.made = made
        self.digests = dict(map(digest, made.files))
        self._ends = [_data_set(path.read_bytes()) for path in made.files]
        self.keys = {"StudyInstanceUID": made.study_uid, "SeriesInstanceUID": made.series_uids[0]}

    def judge_find(self, reply: Reply) -> str:
        """RIGHT, or what is declared; ``wrong: …`` for what is neither."""
        if said := problem(reply):
            return said
        answer = reply.json()
        found = [match["00080018"]["Value"][0] for match in answer["matches"]]
        if len(set(found)) != len(found) or not set(found) <= self.digests.keys():
            return "wrong: other matches"
        return _told(answer, len(found) == len(self.digests))

    def judge_qido(self, reply: Reply) -> str:
        if said := problem(reply):
            return said
        found = [] if reply.status == 204 else [match["00080018"]["Value"][0] for match in reply.json()]
        if "warning" in reply.headers:
            return "declared: Warning"
        return RIGHT if sorted(found) == sorted(self.digests) else f"wrong: {len(found)} of {len(self.digests)}"

    def judge_metadata(self, reply: Reply) -> str:
        return self.judge_qido(reply)

    def judge_parts(self, reply: Reply) -> str:
        """A multipart answer that came to its end has to have each object, unchanged."""
        if said := problem(reply):
            return said
        boundary = re.search('boundary="?([^";]+)', reply.headers["content-type"])
        assert boundary is not None
        pieces = reply.body.split(b"--" + boundary[1].encode())
        if pieces[-1].strip() != b"--":
            return "wrong: no closing boundary"
        parts = [piece.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n") for piece in pieces[1:-1]]
        is_each_sent = all(sum(part.endswith(end) for part in parts) == 1 for end in self._ends)
        if is_each_sent and len(parts) == len(self._ends):
            return RIGHT  # byte for byte, which needs no decoding
        return RIGHT if sorted(map(digest, parts)) == sorted(self.digests.items()) else f"wrong: {len(parts)} parts"

    def judge_counted(self, reply: Reply) -> str:
        """A get or move as JSON."""
        if said := problem(reply):
            return said
        answer = reply.json()
        found = [each["00080018"]["Value"][0] for each in answer["instances"]]
        if len(set(found)) != len(found) or not set(found) <= self.digests.keys():
            return "wrong: other instances"
        return _told(answer, len(found) == len(self.digests))


def _told(answer: Mapping[str, Any], all_there: bool) -> str:
    if answer["success"] and answer["complete"]:
        return RIGHT if all_there else "wrong: said to be complete"
    reason = answer.get("incomplete_reason") or answer.get("error")
    return "declared: incomplete" if reason else "wrong: incomplete without a reason"


def problem(reply: Reply) -> str:
    """Which, for an answer that is not the one that was asked for; "" for one that is."""
    if reply.status < 300:
        return ""
    if not reply.headers.get("content-type", "").startswith("application/problem+json"):
        return f"wrong: {reply.status} without problem details"
    answer = reply.json()
    name = str(answer["type"]).removeprefix("urn:harmonyd:problem:")
    if name in ("internal-error", "bad-request", "identifier-error", "not-found", "nonsense-answer"):
        return f"wrong: {reply.status} {name}"
    return f"declared: {reply.status} {name}"


@dataclass
class Counts:
    """Answers by what was asked for, and how long they took."""

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    secs: dict[str, list[float]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def note(self, work: str, outcome: str, secs: float, detail: str = "") -> None:
        self.outcomes[work, outcome] += 1
        self.secs.setdefault(work, []).append(secs)
        if outcome.startswith("wrong"):
            self.wrong.append(f"{time.strftime('%H:%M:%S')} {work}: {outcome} {detail}"[:600])

    def print(self) -> None:
        for work in sorted(self.secs):
            took = sorted(self.secs[work])
            rows = ", ".join(f"{count} {what}" for (each, what), count in sorted(self.outcomes.items()) if each == work)
            print(f"{work:<16} p50 {1000 * at(took, 0.5):7.1f} ms  p99 {1000 * at(took, 0.99):7.1f} ms"
                  f"  longest {1000 * took[-1]:7.1f} ms  {rows}", flush=True)  # fmt: skip
        for line in self.wrong[:40]:
            print("WRONG", line, flush=True)


def at(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


# --- senders


@dataclass(frozen=True)
class Sent:
    """How to make the object again."""

    sender: str
    number: int
    size: int

    def make(self, path: Path) -> str:
        study = uid_for(f"sent study {self.sender}")
        return make_ct(path, study_uid=study, series_uid=uid_for(f"sent series {self.sender}"), size=self.size,
                       instance_number=self.number, patient_id=f"SENT-{self.sender}")  # fmt: skip


class Sender:
    """storescu again and again, with new objects each time; knows which were acknowledged with Success."""

    def __init__(self, name: str, folder: Path, port: int, aet: str, batch: int = 5, pause_secs: float = 1.0) -> None:
        self.name = name
        self._folder = folder / name
        self._folder.mkdir(parents=True)
        self._argv = [dcmtk("storescu"), "-v", "-aec", aet, "127.0.0.1", str(port)]
        self._numbers = itertools.count(1)
        self._batch = batch
        self._pause_secs = pause_secs
        self.acknowledged: dict[str, Sent] = {}
        self.offered = 0
        self.failed_runs = 0

    async def run(self, until: float) -> None:
        """Until then, of the event loop's clock."""
        loop = asyncio.get_running_loop()
        while loop.time() < until:
            batch = [self._next() for _ in range(self._batch)]
            process = await asyncio.create_subprocess_exec(
                *self._argv, *(str(path) for path, _, _ in batch), env=ENV,
                stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
            )  # fmt: skip
            output, _ = await process.communicate()
            successes = output.count(b"Received Store Response (Success)")
            self.acknowledged.update((uid, sent) for _, uid, sent in batch[:successes])
            self.offered += len(batch)
            self.failed_runs += successes < len(batch)
            for path, _, _ in batch:
                path.unlink()
            await asyncio.sleep(self._pause_secs)

    def _next(self) -> tuple[Path, str, Sent]:
        number = next(self._numbers)
        sent = Sent(self.name, number, 512 if number % 10 == 0 else 40)
        path = self._folder / f"{number}.dcm"
        return path, sent.make(path), sent


def lost(acknowledged: Mapping[str, Sent], folder: Path, scratch: Path) -> list[str]:
    """What of it is in no file below a folder, or is there with another content."""
    there: dict[str, list[Path]] = {}
    for path in folder.rglob("*"):
        if path.is_file() and (uid := _uid_of(path)):
            there.setdefault(uid, []).append(path)
    gone = []
    for uid, sent in acknowledged.items():
        original = scratch / "again.dcm"
        sent.make(original)
        if not any(_same(path, original) for path in there.get(uid, ())):
            gone.append(f"{sent.sender}/{sent.number} {'changed' if uid in there else 'nowhere'}")
    return gone


def _uid_of(path: Path) -> str:
    try:
        return str(dcmread(path, specific_tags=["SOPInstanceUID"], stop_before_pixels=True).SOPInstanceUID)
    except UNREADABLE:  # an index; a writer was killed
        return ""


def _same(path: Path, other: Path) -> bool:
    try:
        return digest(path) == digest(other)
    except UNREADABLE:
        return False


class Archive:
    """``storescp --fork`` as a PACS to deliver to: it writes each object to a file of its name, and then says Success.

    Not dcmqrscp: of objects that come over several associations at once, that of DCMTK 3.6.7 loses some (27 of 1,359
    that storescu sent it over four).
    """

    aet = "ARCHIVE"

    def __init__(self, folder: Path) -> None:
        self.area = folder / "area"
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> Self:
        self.area.mkdir(parents=True, exist_ok=True)
        argv = [dcmtk("storescp"), "--fork", "-aet", self.aet, "+B", "+uf", "-od", str(self.area), str(self.port)]
        self._process = subprocess.Popen(argv, env=ENV, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                         stderr=subprocess.DEVNULL, start_new_session=True)  # fmt: skip
        wait_until(lambda: not port_is_free(self.port), "storescp listens")
        return self

    def stop(self) -> None:
        if self._process is not None:
            end_group(self._process)
            self._process = None
            wait_until(lambda: port_is_free(self.port), "its port is free")

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


# --- the daemon


@dataclass(frozen=True)
class Used:
    """By a daemon, at a moment."""

    minute: float
    rss_mb: float
    fds: int
    threads: int
    processes: int
    """That it has started, and theirs."""

    def __str__(self) -> str:
        return (f"minute {self.minute:5.1f}: RSS {self.rss_mb:6.1f} MB, {self.fds} fds, {self.threads} threads,"
                f" {self.processes} processes")  # fmt: skip


def used(pid: int, began_at: float) -> Used:
    process = psutil.Process(pid)
    children = [each for each in process.children(recursive=True) if each.is_running()]
    return Used((time.monotonic() - began_at) / 60, process.memory_info().rss / 1e6, process.num_fds(),
                process.num_threads(), len(children))  # fmt: skip


_LAG = re.compile(r'^harmonyd_event_loop_lag_seconds_bucket\{le="([^"]+)"\} (\S+)$', re.MULTILINE)


def lag(metrics: str) -> dict[str, float]:
    """The histogram of how late the event loop was: how many were not later than so many seconds."""
    return {bound: float(count) for bound, count in _LAG.findall(metrics)}


def lag_text(before: Mapping[str, float], after: Mapping[str, float]) -> str:
    total = after["+Inf"] - before.get("+Inf", 0)
    return ", ".join(f"≤ {bound} s: {100 * (count - before.get(bound, 0)) / total:.2f} %"
                     for bound, count in after.items())  # fmt: skip


def load() -> str:
    return " ".join(f"{each:.1f}" for each in os.getloadavg())

