"""Results whose records are rewritten before anybody sees them: matches, instances, outcomes of a store."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harmonyd.dimse.dataset_json import file_to_json
from harmonyd.dimse.uid import name_of
from harmonyd.envelope import Record, ReshapedBy, ReshapedRecord, Results
from harmonyd.rewriting.editor import Check, Done, Editor
from harmonyd.rewriting.errors import BadObject, CannotRewrite
from harmonyd.rewriting.objects import Rewritten
from harmonyd.rewriting.rewriter import InThread, Rewriter
from harmonyd.rewriting.tree import JsonTree

_NOT_TOLD = ("folder_id", "folder_path", "debug")
"""Of a summary: these lead to what was not rewritten."""
_UIDS = ("sop_instance_uid", "study_instance_uid", "series_instance_uid")


@dataclass(frozen=True, slots=True)
class TextRecord:
    """JSON that was rewritten."""

    text: bytes
    backend: str | None
    name: str = "match"
    path: Path | None = None

    async def json(self) -> bytes:
        return self.text


@dataclass(frozen=True, slots=True)
class FileRecord:
    """An instance that was rewritten."""

    rewritten: Rewritten
    in_thread: InThread
    backend: str | None
    behind: Record

    @property
    def path(self) -> Path:
        return self.rewritten.path

    @property
    def name(self) -> str:
        """See ``name_of``."""
        return name_of(self.rewritten.sop_instance_uid, self.path.name)

    async def json(self) -> bytes:
        data: bytes = await self.in_thread(file_to_json, self.path)
        return data

    async def discard(self) -> None:
        """Nobody needs the file any more, nor the one behind it."""
        await self.in_thread(self.path.unlink, True)
        if (discard := getattr(self.behind, "discard", None)) is not None:
            await discard()


class RewrittenResults:
    """``Results`` of others, record by record."""

    def __init__(self, results: Results, rewriter: Rewriter, *, forward: bool) -> None:
        self.operation = results.operation
        self.media_type = results.media_type
        self.items_key = results.items_key
        self._results = results
        self._rewriter = rewriter
        self._editor = rewriter.editor
        self._forward = forward

    async def _made(self, record: Record) -> Record | None:
        """Return what becomes of a record; None leaves it out."""
        raise NotImplementedError

    async def __aiter__(self) -> AsyncIterator[Record]:
        async for record in self._results:
            links: list[ReshapedRecord] = []
            while isinstance(record, ReshapedRecord):
                links.append(record)
                record = record.record
            made = await self._made(record)
            if made is None:
                continue
            for link in reversed(links):
                made = ReshapedBy(made, link)
            yield made

    def summary(self) -> Mapping[str, Any]:
        """Those of the results behind, but for what leads to them."""
        return {key: None if key in _NOT_TOLD else value for key, value in self._results.summary().items()}

    @property
    def failed_uids(self) -> tuple[str, ...]:
        """SOP Instance UIDs that a retrieve did not bring."""
        known: Sequence[str] = getattr(self._results, "failed_uids", ())
        return tuple(self._editor.uid(uid, forward=self._forward) for uid in known)

    async def aclose(self) -> None:
        """Close the results behind. Safe to call twice."""
        await self._results.aclose()


class Matches(RewrittenResults):
    """Of a C-FIND; those that do not hold the ``checks`` are left out."""

    def __init__(self, results: Results, rewriter: Rewriter, checks: Sequence[Check], *, forward: bool) -> None:
        super().__init__(results, rewriter, forward=forward)
        self._checks = tuple(checks)
        self._left_out = 0

    async def _made(self, record: Record) -> Record | None:
        text: bytes | None = await self._rewriter.run(self._rewrite, await record.json())
        if text is None:
            self._left_out += 1
            return None
        return TextRecord(text, getattr(record, "backend", None), record.name)

    def _rewrite(self, text: bytes) -> bytes | None:
        members = json.loads(text)
        tree = JsonTree(members, takes_new=False)
        if self._forward:
            self._editor.forward(tree, Done())
        else:
            self._editor.backward(tree, Done())
        self._editor.keep()
        if not all(check.holds(tree) for check in self._checks):
            return None
        return json.dumps(dict(sorted(members.items())), ensure_ascii=False).encode("utf-8", "replace")

    def summary(self) -> Mapping[str, Any]:
        """As it is, with the matches that are left counted."""
        members = dict(super().summary())
        if "count" in members:
            members["count"] -= self._left_out
        return members


class Instances(RewrittenResults):
    """Of a C-GET or C-MOVE: each is written anew, to a folder that goes when the results are closed."""

    def __init__(
        self,
        results: Results,
        rewriter: Rewriter,
        storage: Path,
        request_id: str,
        *,
        forward: bool,
    ) -> None:
        super().__init__(results, rewriter, forward=forward)
        self._request_id = request_id
        # Named as an operation's folder, so that retention finds what is left of a crash.
        self._folder = storage / f"dcmtk_get_{uuid.uuid4().hex}"
        self._count = 0

    async def _made(self, record: Record) -> Record | None:
        if record.path is None:
            raise CannotRewrite("What was retrieved has no file.")
        self._count += 1
        target = self._folder / f"{self._count}.dcm"
        try:
            rewritten = await self._rewriter.rewrite(self._request_id, record.path, target, forward=self._forward)
        except BadObject as error:  # that is not the fault of who asked for it
            raise CannotRewrite(error.detail, hint=error.hint) from error
        return FileRecord(rewritten, self._rewriter.run, getattr(record, "backend", None), record)

    async def aclose(self) -> None:
        """Close the results behind, and remove what was written."""
        try:
            await super().aclose()
        finally:
            await self._rewriter.remove(self._folder)


class Outcomes(RewrittenResults):
    """Of a store: each is about an instance."""

    async def _made(self, record: Record) -> Record | None:
        text, name = await self._rewriter.run(self._rewrite, await record.json(), record.name)
        return TextRecord(text, getattr(record, "backend", None), name)

    def _rewrite(self, text: bytes, name: str) -> tuple[bytes, str]:
        told = outcome(json.loads(text), self._editor, forward=self._forward)
        name = self._editor.uid(name, forward=self._forward)
        self._editor.keep()
        return json.dumps(told).encode(), name


def outcome(members: Mapping[str, Any], editor: Editor, *, forward: bool) -> dict[str, Any]:
    """The outcome of one store, with other UIDs."""
    uids = {key: editor.uid(members[key], forward=forward) for key in _UIDS if members.get(key)}
    return {**members, **uids}
