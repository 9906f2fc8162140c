"""``rewrite`` and ``deidentify``: one view of data sets for clients, another one for backends.

``towards`` says which way the rules are applied as they are written: ``backend``, what goes to backends is changed and
what comes from them is changed back; ``client``, the other way round. A query is always in terms of what the client
sees, and translated; so are UIDs, wherever a client may name one.
"""

from __future__ import annotations

import json
import secrets
import uuid
from collections.abc import Awaitable, Mapping, Sequence
from pathlib import Path
from typing import Any

from harmonyd.bodies import BytesBody, FilesBody, ObjectBody
from harmonyd.dimse.dataset_json import file_to_json
from harmonyd.envelope import RequestEnvelope, ResponseEnvelope
from harmonyd.errors import HarmonydError, UnsupportedMediaType
from harmonyd.mediatypes import parse_media_type
from harmonyd.middleware.json_view import request_json
from harmonyd.multipart import read_parts
from harmonyd.rewriting.editor import Check
from harmonyd.rewriting.errors import BadObject, CannotRewrite
from harmonyd.rewriting.identifiers import change_document
from harmonyd.rewriting.results import Instances, Matches, Outcomes, outcome
from harmonyd.rewriting.rewriter import InThread, Rewriter

_DICOM = "application/dicom"
_MAX_PARTS = 10_000
_QUESTIONS = ("C-FIND", "C-GET", "C-MOVE")
_STUDY = "store_study_instance_uid"
_EACH = "store_each"
_OF_THE_OLD_BODY = ("content-", "digest", "repr-digest")


class Rewriting:
    """Both types; they differ in what ``objects`` do."""

    def __init__(
        self,
        name: str,
        rewriter: Rewriter,
        storage: Path,
        *,
        to_backend: bool,
        aets: Mapping[str, Mapping[str, str]],
    ) -> None:
        """``storage``: where new files are made. ``aets``: by metadata key, AE titles and what becomes of them."""
        self.name = name
        self._rewriter = rewriter
        self._storage = storage
        self._to_backend = to_backend
        self._aets = aets

    # --- requests

    async def on_request(self, request: RequestEnvelope) -> ResponseEnvelope | None:
        """Raises ``NotAskable``, ``BadObject``, ``CannotRewrite``, and what reading the body raises."""
        for key, table in self._aets.items():
            if request.metadata.get(key, "") in table:
                request.metadata[key] = table[request.metadata[key]]
        if request.protocol == "dicom" and isinstance(request.body, ObjectBody):
            await self._received(request, request.body)
        elif request.protocol == "dicom" and request.method in _QUESTIONS:
            request.normalized = await self._document(request, request.normalized)
        elif _has_objects(request):
            await self._posted(request)
        else:
            await self._asked(request)
        return None

    async def _asked(self, request: RequestEnvelope) -> None:
        data = await request_json(request)
        changed = await self._document(request, data)
        if changed == data:
            return
        request.body = BytesBody(json.dumps(changed).encode())
        if request.normalized is not None:
            request.normalized = changed

    async def _document(self, request: RequestEnvelope, document: Any) -> Any:
        changed, checks = await self._rewriter.run(self._ask, document)
        if checks and request.occasion is not None:
            request.occasion.marks[self._mark(request)] = checks
        return changed

    def _ask(self, document: Any) -> tuple[Any, list[Check]]:
        found = change_document(document, self._rewriter.editor, forward=self._to_backend)
        self._rewriter.editor.keep()
        return found

    def _mark(self, request: RequestEnvelope) -> str:
        return f"{self.name} {id(request)}"

    async def _received(self, request: RequestEnvelope, body: ObjectBody) -> None:
        target = self._storage / f"dcmtk_store_{uuid.uuid4().hex}" / "1.dcm"
        temporary = TemporaryBody(target, body, self._rewriter)
        try:
            rewritten = await self._rewriter.rewrite(request.id, body.path, target, forward=self._to_backend)
        except BaseException:
            await self._rewriter.remove(target.parent)
            raise
        request.body = temporary
        temporary.length = await self._rewriter.run(lambda: target.stat().st_size)
        request.metadata |= rewritten.uids
        if request.normalized is not None:
            request.normalized = json.loads(await self._rewriter.run(file_to_json, target))

    async def _posted(self, request: RequestEnvelope) -> None:
        """Objects in the body of an HTTP request: all are on disk, and rewritten, before anybody gets one."""
        folder = self._storage / f"dcmtk_store_{uuid.uuid4().hex}"
        await self._rewriter.run(lambda: folder.mkdir(mode=0o700, parents=True))
        assert request.occasion is not None, "the pipeline has given it one"
        request.occasion.at_end(lambda: _later(self._rewriter.remove(folder)))
        is_each = request.metadata.get(_EACH) == "true"
        files = await _written(request, folder, self._rewriter.run)
        made = [await self._part(request.id, path, is_each=is_each) for path in files]
        single = len(made) == 1 and not request.headers["content-type"].lower().startswith("multipart")
        boundary = "" if single else f"harmonyd-{secrets.token_hex(16)}"
        length = await self._rewriter.run(lambda: made[0].stat().st_size) if single else None
        request.body = FilesBody(made, boundary, length)
        kind = _DICOM if single else f'multipart/related; type="{_DICOM}"; boundary={boundary}'
        kept = {name: value for name, value in request.headers.items() if not name.startswith(_OF_THE_OLD_BODY)}
        request.headers = {**kept, "content-type": kind}
        if study := request.metadata.get(_STUDY):
            uid = await self._rewriter.run(lambda: self._rewriter.editor.uid(study, forward=self._to_backend))
            request.metadata[_STUDY] = uid

    async def _part(self, request_id: str, path: Path, *, is_each: bool) -> Path:
        target = path.with_name(path.name + ".new")
        try:
            await self._rewriter.rewrite(request_id, path, target, forward=self._to_backend)
        except BadObject:
            if not is_each:
                raise
            await self._rewriter.run(target.write_bytes, b"")  # which is refused, by itself, as no object
        await self._rewriter.run(path.unlink)
        return target

    # --- answers

    async def on_response(self, request: RequestEnvelope, response: ResponseEnvelope) -> ResponseEnvelope:
        """Raises ``CannotRewrite`` for an answer that is no stream of records, and so cannot be looked into."""
        forward, rewriter = not self._to_backend, self._rewriter
        results = response.results
        if results is None:
            self._require_nothing(request, response)
        elif results.operation == "find":
            marks = request.occasion.marks if request.occasion is not None else {}
            checks: Sequence[Check] = marks.pop(self._mark(request), ())
            response.results = Matches(results, rewriter, checks, forward=forward)
        elif results.operation in ("get", "move"):
            response.results = Instances(results, rewriter, self._storage, request.id, forward=forward)
        elif results.operation == "store":
            response.results = Outcomes(results, rewriter, forward=forward)
        elif results.operation != "echo":
            raise CannotRewrite(f"Results of {results.operation!r} cannot be rewritten.")
        return response

    async def on_error(self, request: RequestEnvelope, error: HarmonydError) -> None:
        """Translate the UIDs of instances that a store refused; what else leads to originals is left out."""
        error.extra.pop("debug", None)
        told = error.extra.get("instances")
        if isinstance(told, list):
            error.extra["instances"] = await self._rewriter.run(self._outcomes, told)

    def _outcomes(self, told: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [outcome(each, self._rewriter.editor, forward=not self._to_backend) for each in told]

    def _require_nothing(self, request: RequestEnvelope, response: ResponseEnvelope) -> None:
        is_empty = response.body is None or response.body.length == 0
        is_store = request.protocol == "dicom" or isinstance(request.body, FilesBody)
        if not is_empty and not is_store:
            raise CannotRewrite(
                f"Middleware {self.name} cannot look into this answer, and so does not pass it on.",
                hint="It is for dicom and dicomweb backends, and nothing behind it makes other answers: put a "
                "transform before it, or set its per_record.",
            )


class TemporaryBody(ObjectBody):
    """An object that was made for one delivery, instead of ``behind``; closing removes it."""

    def __init__(self, path: Path, behind: ObjectBody, rewriter: Rewriter) -> None:
        super().__init__(path, 0)
        self._behind = behind
        self._rewriter = rewriter

    async def close(self) -> None:
        await super().close()
        await self._rewriter.remove(self.path.parent)
        await self._behind.close()


def _later(work: Awaitable[Any]) -> None:
    from twisted.internet.defer import Deferred

    async def ended() -> None:
        await work

    Deferred.fromCoroutine(ended()).addErrback(lambda _: None)


def _has_objects(request: RequestEnvelope) -> bool:
    media = parse_media_type(request.headers.get("content-type", ""))
    if media is None or isinstance(request.body, ObjectBody):
        return False
    if media.essence == "multipart/related":
        return True
    return media.essence == _DICOM


async def _written(request: RequestEnvelope, folder: Path, in_thread: InThread) -> list[Path]:
    """Write what the body holds to files. Raises ``UnsupportedMediaType``, and what ``read_parts`` raises."""
    if isinstance(request.body, FilesBody):  # of another middleware like this
        return list(request.body.paths)
    content_type = request.headers["content-type"]
    media = parse_media_type(content_type)
    assert media is not None, "the caller has looked at it"
    if media.essence == "multipart/related":
        if media.parameters.get("type", _DICOM).lower() != _DICOM:
            raise UnsupportedMediaType("Only whole objects can be rewritten.", hint=f"Send parts of {_DICOM}.")
        return [part.path for part in await read_parts(request.body, content_type, folder, max_parts=_MAX_PARTS)]
    target = folder / "1.dcm"
    with target.open("wb") as file:
        async for chunk in request.body.chunks():
            await in_thread(file.write, chunk)
    return [target]
