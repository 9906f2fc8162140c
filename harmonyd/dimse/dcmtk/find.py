"""C-FIND with findscu: matches leave as their files arrive, already decoded."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

from harmonyd.dimse import artifacts
from harmonyd.dimse.dataset_json import MalformedDataset, part10_to_json
from harmonyd.dimse.dcmtk import argv, verdict
from harmonyd.dimse.dcmtk.run import Toolbox, ToolRun
from harmonyd.dimse.elements import Cursor, read_file_meta
from harmonyd.dimse.engine import Match, OperationContext, Query, Received, RemoteNode
from harmonyd.dimse.errors import EngineFailed, NonsenseAnswer
from harmonyd.dimse.streams import ItemStream

MAX_MATCH_BYTES = 10_000_000
"""A match is a few kilobytes of text; it is in memory as a whole."""


def find(box: Toolbox, storage: Path, remote: RemoteNode, query: Query, op: OperationContext) -> ItemStream[Match]:
    """Lazy: the program runs from the first item asked for."""

    async def produce(stream: ItemStream[Match]) -> AsyncGenerator[Match, None]:
        folder = artifacts.folder_of(storage, "find", op.id)
        run = ToolRun(box, op, folder=folder)
        try:
            with box.query_on_disk(op, query) as request:
                tool = box.tools["findscu"].path

                def command(node: RemoteNode) -> list[str]:
                    return argv.findscu(tool, box.log_config, node, query.model, request, folder)

                await run.start_to(remote, command, small_dictionary=True)
                stream.folder = folder
                count = 0
                async with aclosing(run.batches()) as batches:
                    async for names in batches:
                        for match in await box.in_thread(_decode, folder, names, op.as_received):
                            if count == op.max_results:
                                limit = f"more than max_results ({op.max_results}) matches"
                                stream.outcome.incomplete(f"{limit}; the rest was cut")
                                return
                            count += 1
                            yield match
            _conclude(stream, run, remote, count)
        finally:
            await run.close()

    return ItemStream(produce)


def _decode(folder: Path, names: list[str], as_received: bool) -> list[Match]:
    matches = []
    for name in names:
        with (folder / name).open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_MATCH_BYTES:
                raise NonsenseAnswer(f"The PACS sent a match of {size} bytes; {MAX_MATCH_BYTES} are allowed")
            data = file.read()
        try:
            matches.append(Match(b"", _received(data)) if as_received else Match(part10_to_json(data)))
        except MalformedDataset:
            artifacts.raise_if_full(folder)
            raise
    return matches


def _received(data: bytes) -> Received:
    """A file of findscu's, which does not tell the status of the response. Raises ``MalformedDataset``."""
    cursor = Cursor(data)
    uid = read_file_meta(cursor).transfer_syntax_uid
    return Received(data[cursor.pos :], uid)


def _conclude(stream: ItemStream[Match], run: ToolRun, remote: RemoteNode, count: int) -> None:
    assert run.record is not None
    assert stream.folder is not None
    stream.outcome = verdict.final_outcome("find", "C-FIND RSP", run.log, run.record, remote)
    if run.log.find_responses != count:
        # findscu does not say when it could not write a response.
        artifacts.raise_if_full(stream.folder)
        raise EngineFailed(f"The PACS sent {run.log.find_responses} matches, but {count} could be read")
