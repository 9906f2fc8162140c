"""C-STORE: Part 10 files out over one association, their data sets as they are, one result each (PS3.4 Annex B)."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Sequence
from pathlib import Path

from harmonyd.dimse import status as dimse_status
from harmonyd.dimse.engine import OperationContext, RemoteNode, StoreResult
from harmonyd.dimse.native.client import MAX_CONTEXTS
from harmonyd.dimse.native.exchange import Means
from harmonyd.dimse.native.sending import Outgoing, Sending, contexts_for
from harmonyd.dimse.part10 import DamagedFile, read_header
from harmonyd.dimse.streams import ItemStream
from harmonyd.dimse.tally import Tally
from harmonyd.errors import HarmonydError

_FILES_AT_ONCE = 500
"""Whose headers are in memory, and which share an association."""


def store(means: Means, remote: RemoteNode, files: Sequence[Path], op: OperationContext) -> ItemStream[StoreResult]:
    """Lazy. Raises when the association fails before any instance was answered."""

    async def produce(stream: ItemStream[StoreResult]) -> AsyncGenerator[StoreResult, None]:
        answered = False
        tally = Tally(op.progress, len(files))
        failure: HarmonydError | None = None
        for first in range(0, len(files), _FILES_AT_ONCE):
            headers = await means.in_thread(_headers, files[first : first + _FILES_AT_ONCE])
            for group in _groups(headers):
                sending = Sending(means, remote, group, op, tally)
                if failure is None:
                    failure = await sending.run()
                answered = answered or any(result.status is not None for result in sending.results)
                if failure is not None and not answered:
                    raise failure
                for result in sending.with_the_rest(failure):
                    yield result
        stream.outcome.status = dimse_status.SUCCESS

    return ItemStream(produce)


def _headers(paths: Sequence[Path]) -> list[Outgoing]:
    return [_header(path) for path in paths]


def _header(path: Path) -> Outgoing:
    try:
        return Outgoing(path, read_header(path))
    except DamagedFile as damage:
        return Outgoing(path, problem=damage.detail)
    except OSError as error:
        return Outgoing(path, problem=error.strerror or type(error).__name__)


def _groups(files: Sequence[Outgoing]) -> Iterator[list[Outgoing]]:
    """Cut where one association would need too many presentation contexts (PS3.8 section 9.3.2.2: 128)."""
    group: list[Outgoing] = []
    wanted: set[tuple[str, tuple[str, ...]]] = set()
    for file in files:
        own = contexts_for([file])
        if len(wanted.union(own)) > MAX_CONTEXTS:
            yield group
            group, wanted = [], set()
        group.append(file)
        wanted.update(own)
    yield group
