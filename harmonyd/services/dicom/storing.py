"""C-STORE for a request: body to files, files to the remote node, one outcome each."""

from __future__ import annotations

import shutil
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from twisted.internet.defer import CancelledError

from harmonyd.bodies import FilesBody
from harmonyd.dimse import status as dimse_status
from harmonyd.dimse.engine import Engine, OperationContext, OperationStream, RemoteNode, StoreResult
from harmonyd.dimse.errors import DimseError, DimseFailure
from harmonyd.dimse.part10 import DamagedFile, check_complete, read_header
from harmonyd.dimse.uid import is_uid
from harmonyd.envelope import RequestEnvelope, ResponseEnvelope
from harmonyd.errors import BadRequest, HarmonydError, UnsupportedMediaType
from harmonyd.mediatypes import parse_media_type
from harmonyd.multipart import read_parts
from harmonyd.pipeline.errors import NotTried
from harmonyd.services.dicom.auditing import Sent
from harmonyd.services.dicom.objects import ObjectBody
from harmonyd.services.dicom.results import FixedResults, store_members

MAX_PARTS = 10_000
_DICOM = "application/dicom"
InThread = Callable[..., Awaitable[Any]]
Admit = Callable[[Sequence[Path]], Awaitable[None]]


async def store_request(
    engine: Engine,
    remote: RemoteNode,
    request: RequestEnvelope,
    op: OperationContext,
    storage: Path,
    in_thread: InThread,
    sent: Sent | None = None,
    now: Callable[[], float] = time.monotonic,
    admit: Admit | None = None,
) -> FixedResults:
    """Store what the body holds, once all of it is there: a slow client holds no association, and uses up no deadline.

    ``sent`` learns of all objects before any is sent, and of each answer; ``admit`` raises for those that must not be.
    Raises ``BadRequest`` for a part that is not DICOM, ``DimseFailure`` if all failed.
    """
    folder = storage / f"dcmtk_store_{op.id}"
    await in_thread(lambda: folder.mkdir(parents=True))
    try:
        began = now()
        files = await request_files(request, folder, in_thread)
        op = replace(op, deadline=op.deadline + now() - began)
        await in_thread(_check, files, sent)
        if admit is not None:
            await admit(files)
        if sent is not None:
            sent.begin()
        stored = await _store(engine.store(remote, files, op), sent)
    finally:
        await in_thread(shutil.rmtree, folder, True)
    return FixedResults("store", "application/json", _summary(stored), stored)


async def _store(stream: OperationStream[StoreResult], sent: Sent | None) -> list[StoreResult]:
    stored: list[StoreResult] = []
    try:
        await _collect(stream, stored, sent)
    except HarmonydError as error:
        if stored:
            error.extra["instances"] = list(map(store_members, stored))
        raise
    return stored


async def _collect(stream: OperationStream[StoreResult], stored: list[StoreResult], sent: Sent | None = None) -> None:
    try:
        async for result in stream:
            stored.append(result)
            if sent is not None:
                sent.answered(result)
    finally:
        await stream.aclose()


async def store_objects(
    engine: Engine,
    remote: RemoteNode,
    paths: Sequence[Path],
    op: OperationContext,
    in_thread: InThread,
    offered: Sent | None = None,
) -> list[ResponseEnvelope | Exception]:
    """Store received objects over one association; one answer, or what was wrong, for each.

    ``offered`` learns of all objects before any is sent.

    Where the association fails, the object it failed at is told the reason, and those after it were ``NotTried``. A
    file that cannot be read is nobody else's problem. Raises only ``CancelledError``.
    """
    wrong: dict[Path, Exception] = await in_thread(_unreadable, paths, offered)
    sent = [path for path in paths if path not in wrong]
    stored: list[StoreResult] = []
    failure: Exception | None = None
    try:
        if sent:
            await _collect(engine.store(remote, sent, op), stored)
    except CancelledError:
        raise
    except Exception as error:  # noqa: BLE001 - it is the answer to one of the objects
        failure = error
    answers = iter(_answers(stored, len(sent), failure))
    return [wrong[path] if path in wrong else next(answers) for path in paths]


def _unreadable(paths: Sequence[Path], offered: Sent | None) -> dict[Path, Exception]:
    wrong: dict[Path, Exception] = {}
    for path in paths:
        try:
            header = read_header(path)
        except (DamagedFile, OSError) as error:
            wrong[path] = error
        else:
            if not header.sop_instance_uid.isprintable():
                # As in ``_check``: it would come back in the log of storescu.
                wrong[path] = DamagedFile("its SOP Instance UID has control characters")
            if offered is not None:
                offered.offer(header)
    return wrong


def _answers(
    stored: Sequence[StoreResult], count: int, failure: Exception | None
) -> list[ResponseEnvelope | Exception]:
    """What has no answer before one that has was left out by itself; what has none after it, with the association."""
    answered = max((number for number, result in enumerate(stored, 1) if result.status is not None), default=0)
    answers = [_answer(result) for result in stored[:answered]]
    if answered < count:
        reason = stored[answered].status_text if answered < len(stored) else "the association ended before"
        blamed = failure or DimseError(f"The object was not stored: {reason}")
        answers += [blamed, *[NotTried("An object before this one was in the way")] * (count - answered - 1)]
    return answers


def _answer(result: StoreResult) -> ResponseEnvelope | Exception:
    if result.status is None:
        return DimseError(f"The object was not stored: {result.status_text}", dimse_comment=result.comment)
    if is_taken(result.status):
        return ResponseEnvelope()
    return DimseFailure.from_status("C-STORE", result.status, result.status_text, result.comment)


def _summary(stored: list[StoreResult]) -> dict[str, Any]:
    taken = [result for result in stored if result.status is not None and is_taken(result.status)]
    if not taken:
        worst = stored[0]
        raise DimseFailure(
            f"The remote node took none of {len(stored)} instances: {worst.status_text}",
            dimse_status=None if worst.status is None else f"0x{worst.status:04X}",
            dimse_comment=worst.comment,
            instances=list(map(store_members, stored)),
        )
    whole = len(taken) == len(stored)
    failed = len(stored) - len(taken)
    summary: dict[str, Any] = {"success": whole, "complete": whole, "stored": len(taken), "failed": failed}
    if failed:
        summary["incomplete_reason"] = f"{failed} of {len(stored)} instances were not stored"
    return summary


def is_taken(status: int) -> bool:
    """Tell whether a status of C-STORE says that the object is there (PS3.4 section B.2.3)."""
    return dimse_status.category(status) in (
        dimse_status.StatusCategory.SUCCESS,
        dimse_status.StatusCategory.WARNING,
    )


async def request_files(request: RequestEnvelope, folder: Path, in_thread: InThread) -> list[Path]:
    """Write what the body holds to files in ``folder``, and return them; an object of ours stays where it lies.

    Raises ``UnsupportedMediaType`` and what ``read_parts`` raises.
    """
    if isinstance(request.body, ObjectBody):
        # An object of our own spool: sent from where it lies.
        return [request.body.path]
    if isinstance(request.body, FilesBody):
        return list(request.body.paths)
    content_type = request.headers.get("content-type", "")
    media = parse_media_type(content_type)
    kind = media.essence if media is not None else content_type.strip()
    if media is not None and kind == "multipart/related":
        root = media.parameters.get("type", _DICOM).lower()
        if root != _DICOM:
            raise UnsupportedMediaType(
                f"A store takes parts of {_DICOM}, not of {root[:100]}",
                hint="Send whole DICOM files, not metadata with bulk data beside it.",
            )
        parts = await read_parts(request.body, content_type, folder, max_parts=MAX_PARTS)
        return [part.path for part in parts]
    if kind != _DICOM:
        raise UnsupportedMediaType(
            f"A store takes {_DICOM} or multipart/related, not {kind[:100] or 'a body without a type'}",
            hint="Set the Content-Type of the request.",
        )
    target = folder / "1.dcm"
    with target.open("wb") as file:
        async for chunk in request.body.chunks():
            await in_thread(file.write, chunk)
    return [target]


def _check(files: list[Path], sent: Sent | None) -> None:
    for number, path in enumerate(files, 1):
        try:
            header = check_complete(path)
        except DamagedFile as damage:
            raise BadRequest(
                f"Object {number} of {len(files)} is not a whole DICOM file: {damage.detail}",
                hint="Send Part 10 files (preamble, DICM, file meta information, data set).",
            ) from damage
        for what, uid in (("SOP Class", header.sop_class_uid), ("Transfer Syntax", header.transfer_syntax_uid)):
            if not is_uid(uid):
                raise BadRequest(f"Object {number} of {len(files)}: its {what} UID is missing, or no UID")
        if not header.sop_instance_uid.isprintable():
            # It comes back in the log of storescu, where a line break would begin a line of its own.
            raise BadRequest(f"Object {number} of {len(files)}: its SOP Instance UID has control characters")
        if sent is not None:
            sent.offer(header)
