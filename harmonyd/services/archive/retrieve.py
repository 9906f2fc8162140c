"""WADO-RS as a retrieve: what the archive counts is asked first, and compared with what came."""

from __future__ import annotations

import errno
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

from harmonyd.dimse import artifacts
from harmonyd.dimse.accept import Intake
from harmonyd.dimse.engine import Instance, OperationContext, Outcome, Query, QueryLevel, SubOperations
from harmonyd.dimse.errors import EngineFailed
from harmonyd.dimse.reconcile import reconcile
from harmonyd.errors import HarmonydError
from harmonyd.services.archive.answer import Answer
from harmonyd.services.archive.client import Client
from harmonyd.services.archive.credentials import InThread
from harmonyd.services.archive.errors import error_of
from harmonyd.services.archive.parts import DICOM, PartFiles, instances
from harmonyd.services.archive.query import Search, retrieve_uids
from harmonyd.services.archive.search import Searcher

ANY_SYNTAX = f'multipart/related; type="{DICOM}"; transfer-syntax=*'
"""As they are stored (PS3.18 section 8.7.3.5.2)."""
DEFAULT_SYNTAX = f'multipart/related; type="{DICOM}"'
_NOT_THERE = (404, 410)
_INCOMING = "incoming"
_STUDY, _INSTANCE = "0020000D", "00080018"
_COUNTS = {QueryLevel.STUDY: "00201208", QueryLevel.SERIES: "00201209"}


@dataclass(frozen=True, slots=True)
class Wanted:
    """One resource to retrieve."""

    path: str
    level: QueryLevel
    study: str
    series: str = ""


class Retrieve:
    """One retrieve. ``prefix`` of WADO-RS."""

    def __init__(
        self,
        client: Client,
        searcher: Searcher,
        prefix: str,
        query: Query,
        op: OperationContext,
        intake: Intake,
        max_instance_bytes: int,
        in_thread: InThread,
    ) -> None:
        self._client = client
        self._searcher = searcher
        self._prefix = prefix
        self._query = query
        self._op = op
        self._intake = intake
        self._max_instance_bytes = max_instance_bytes
        self._in_thread = in_thread
        self._expected: int | None = 0
        """By the archive's own count; None: it does not tell."""
        self._notes: list[str] = []

    @property
    def _folder(self) -> Path:
        return self._intake.folder

    async def instances(self) -> AsyncGenerator[Instance, None]:
        """As they come. Raises what the archive does wrong, and what our disk does."""
        incoming = self._folder / _INCOMING
        await self._in_thread(lambda: incoming.mkdir(parents=True, exist_ok=True))
        try:
            for wanted in await self._wanted():
                await self._count(wanted)
                async with aclosing(self._of(wanted, incoming)) as found:
                    async for instance in found:
                        yield instance
        except OSError as error:
            raise _failure_to_write(error) from error
        finally:
            await self._in_thread(_remove, incoming)

    async def _wanted(self) -> list[Wanted]:
        uids = retrieve_uids(self._query)
        studies = uids.get(QueryLevel.STUDY, [])
        if self._query.level is QueryLevel.PATIENT:
            patient = uids[QueryLevel.PATIENT][0]
            search = Search("/studies", (("00100020", patient), ("includefield", _STUDY)))
            studies = sorted(await self._listed(search, _STUDY))
        if self._query.level in (QueryLevel.PATIENT, QueryLevel.STUDY):
            return [Wanted(f"/studies/{study}", QueryLevel.STUDY, study) for study in studies]
        series = uids[QueryLevel.SERIES]
        above = f"/studies/{studies[0]}/series"
        if self._query.level is QueryLevel.SERIES:
            return [Wanted(f"{above}/{each}", QueryLevel.SERIES, studies[0], each) for each in series]
        return [
            Wanted(f"{above}/{series[0]}/instances/{each}", QueryLevel.IMAGE, studies[0], series[0])
            for each in uids[QueryLevel.IMAGE]
        ]

    async def _listed(self, search: Search, tag: str) -> list[str]:
        outcome = Outcome()
        uids = await self._searcher.uids(search, tag, self._op, outcome)
        if not outcome.complete:
            self._expected = None
            self._notes.append(f"the list of what to retrieve is not complete: {outcome.incomplete_reason}")
        return uids

    async def _count(self, wanted: Wanted) -> None:
        """A question more, and the only way to know what is missing: an answer that lacks it ends as any other."""
        if self._expected is None:
            return
        if wanted.level is QueryLevel.IMAGE:
            self._expected += 1
            return
        try:
            count = await self._counted(wanted)
        except HarmonydError as error:
            self._expected = None
            self._notes.append(f"the archive could not be asked how many instances there are: {error.detail}")
            return
        self._expected += count

    async def _counted(self, wanted: Wanted) -> int:
        of_study = wanted.level is QueryLevel.STUDY
        path = "/studies" if of_study else f"/studies/{wanted.study}/series"
        key = (_STUDY, wanted.study) if of_study else ("0020000E", wanted.series)
        count = _COUNTS[wanted.level]
        found = await self._searcher.first(Search(path, (key, ("includefield", count))), self._op)
        if found is None:
            return 0
        values = (found.get(count) or {}).get("Value") or [None]
        if str(values[0]).isdecimal():
            return int(values[0])
        search = Search(f"{wanted.path}/instances", (("includefield", _INSTANCE),))
        return len(await self._listed(search, _INSTANCE))

    async def _of(self, wanted: Wanted, incoming: Path) -> AsyncGenerator[Instance, None]:
        answer = await self._asked(wanted)
        try:
            if answer.status in (*_NOT_THERE, 204):
                await answer.drop()
                return
            if answer.status not in (200, 206):
                await answer.drop()
                raise error_of(self._client.name, "a retrieve", answer.status, answer.headers.get("retry-after"))
            if answer.status == 206:
                self._notes.append("the archive says itself that it did not send all")
            files = PartFiles(self._client.name, answer.media_type, incoming, self._intake, self._max_instance_bytes)
            async with aclosing(instances(answer, files, self._in_thread)) as found:
                async for instance in found:
                    yield instance
        finally:
            await answer.close()

    async def _asked(self, wanted: Wanted) -> Answer:
        path = self._prefix + wanted.path
        answer = await self._client.get(path, ANY_SYNTAX, self._op.deadline)
        if answer.status in (400, 406):
            # It does not know the parameter, or has to transcode: then what it can.
            await answer.drop()
            answer = await self._client.get(path, DEFAULT_SYNTAX, self._op.deadline)
        return answer

    def conclude(self, outcome: Outcome) -> None:
        """Fill in the truth."""
        arrived = len(self._intake.arrived)
        for note in self._notes:
            outcome.incomplete(note)
        if self._expected is not None:
            missing = max(0, self._expected - arrived)
            if missing:
                outcome.incomplete(f"the archive counts {self._expected} instances, {arrived} arrived")
            if self._expected or arrived:
                outcome.suboperations = SubOperations(arrived, missing, 0, 0)
        counted, outcome.suboperations = outcome.suboperations, None
        reconcile(outcome, self._intake)
        outcome.suboperations = counted


def _remove(folder: Path) -> None:
    for left in folder.iterdir():
        left.unlink(missing_ok=True)
    folder.rmdir()


def _failure_to_write(error: OSError) -> HarmonydError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return artifacts.storage_full()
    return EngineFailed(
        f"What the archive sent could not be written: {error.strerror or type(error).__name__}",
        hint="Look at the storage path, its permissions and its disk.",
    )
