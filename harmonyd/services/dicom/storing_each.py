"""C-STORE for a request that wants a verdict on each object, whatever is wrong with others (STOW-RS)."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harmonyd.dimse.engine import Engine, OperationContext, RemoteNode, StoreResult
from harmonyd.dimse.part10 import DamagedFile, InstanceHeader, check_complete, claimed_uid
from harmonyd.dimse.uid import is_uid
from harmonyd.envelope import RequestEnvelope
from harmonyd.errors import BadRequest, HarmonydError
from harmonyd.services.dicom.auditing import Sent
from harmonyd.services.dicom.results import FixedResults
from harmonyd.services.dicom.storing import Admit, InThread, is_taken, request_files

EACH = "store_each"
""""true" in the metadata: an object that cannot be stored is told in its result, and does not refuse the others."""
STUDY = "store_study_instance_uid"
"""In the metadata: objects of another study are not stored."""
CANNOT_UNDERSTAND = 0xC000
OTHER_STUDY = 0xC409
"""Our own, of the class "cannot understand" (PS3.4 table B.2-1); other DICOMweb servers use it for this too."""


@dataclass(slots=True)
class _Object:
    path: Path
    header: InstanceHeader | None
    result: StoreResult | None = None
    """Set when the object is not to be sent, or was."""


async def store_each(
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
    """Store what can be stored of the body over one association; one result for each object, in order.

    ``sent`` learns of all objects before any is sent, and of each answer; ``admit`` raises for those that must not be.
    The body is on disk before the association begins. Raises ``BadRequest`` for a body that is not well formed or
    empty, and what the operation raises where it failed before any object was answered.
    """
    folder = storage / f"dcmtk_store_{op.id}"
    await in_thread(lambda: folder.mkdir(parents=True))
    try:
        began = now()
        files = await request_files(request, folder, in_thread)
        objects = await in_thread(_looked_at, files, request.metadata.get(STUDY, ""))
        if admit is not None:
            await admit([each.path for each in objects if each.result is None])
        if sent is not None:
            for header in (each.header for each in objects if each.header is not None and each.result is None):
                sent.offer(header)
            sent.begin()
        await _send(engine, remote, objects, replace(op, deadline=op.deadline + now() - began), sent)
    finally:
        await in_thread(shutil.rmtree, folder, True)
    results = [_told(each) for each in objects]
    return FixedResults("store", "application/json", _summary(results), results)


def _looked_at(files: Sequence[Path], study: str) -> list[_Object]:
    if not files:
        raise BadRequest("There is no object in the body.")
    return [_look_at(path, study) for path in files]


def _look_at(path: Path, study: str) -> _Object:
    try:
        header = check_complete(path)
    except DamagedFile as damage:
        uid = claimed_uid(path)
        return _Object(path, None, StoreResult("", uid if is_uid(uid) else "", CANNOT_UNDERSTAND, damage.detail))
    wrong = _complaint(header)
    if wrong:
        uid = header.sop_instance_uid if is_uid(header.sop_instance_uid) else ""
        return _Object(path, None, StoreResult(header.sop_class_uid, uid, CANNOT_UNDERSTAND, wrong))
    if study and header.study_instance_uid != study:
        text = f"It belongs to study {header.study_instance_uid}"
        refused = StoreResult(header.sop_class_uid, header.sop_instance_uid, OTHER_STUDY, text)
        return _Object(path, header, refused)
    return _Object(path, header)


def _complaint(header: InstanceHeader) -> str:
    for what, uid in (
        ("SOP Class", header.sop_class_uid),
        ("SOP Instance", header.sop_instance_uid),
        ("Transfer Syntax", header.transfer_syntax_uid),
    ):
        if not is_uid(uid):
            return f"Its {what} UID is missing, or no UID"
    return ""


async def _send(
    engine: Engine, remote: RemoteNode, objects: Sequence[_Object], op: OperationContext, sent: Sent | None
) -> None:
    """Send what has no result yet. Those that the association's end leaves without an answer say so."""
    waiting = [each for each in objects if each.result is None]
    if not waiting:
        return
    answered = iter(waiting)
    try:
        async with aclosing(engine.store(remote, [each.path for each in waiting], op)) as results:
            async for result in results:
                next(answered).result = result
                if sent is not None:
                    sent.answered(result)
    except HarmonydError as error:
        if not any(each.result is not None and each.result.status is not None for each in waiting):
            raise
        for each in answered:
            each.result = _unanswered(each, error.detail)


def _unanswered(each: _Object, why: str) -> StoreResult:
    assert each.header is not None, "it was to be sent"
    return StoreResult(each.header.sop_class_uid, each.header.sop_instance_uid, None, why)


def _told(each: _Object) -> StoreResult:
    result = each.result or _unanswered(each, "the association ended before")
    if each.header is None:
        return result
    return replace(
        result,
        sop_class_uid=each.header.sop_class_uid,
        sop_instance_uid=each.header.sop_instance_uid,
        study_instance_uid=each.header.study_instance_uid,
        series_instance_uid=each.header.series_instance_uid,
    )


def _summary(results: Sequence[StoreResult]) -> dict[str, Any]:
    stored = sum(result.status is not None and is_taken(result.status) for result in results)
    whole = stored == len(results)
    summary: dict[str, Any] = {"success": whole, "complete": whole, "stored": stored, "failed": len(results) - stored}
    if not whole:
        summary["incomplete_reason"] = f"{len(results) - stored} of {len(results)} instances were not stored"
    return summary
