"""C-GET with getscu and C-MOVE with movescu: instances leave as they arrive, then the counters are reconciled."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

from twisted.logger import Logger

from harmonyd.dimse import artifacts
from harmonyd.dimse.accept import Intake
from harmonyd.dimse.dcmtk import argv, verdict
from harmonyd.dimse.dcmtk.log_config import MARK
from harmonyd.dimse.dcmtk.moves import Delivery
from harmonyd.dimse.dcmtk.receivers import Receivers
from harmonyd.dimse.dcmtk.run import Toolbox, ToolRun
from harmonyd.dimse.engine import Instance, MoveReceiver, OperationContext, Query, RemoteNode
from harmonyd.dimse.errors import DimseFailure
from harmonyd.dimse.reconcile import reconcile
from harmonyd.dimse.streams import ItemStream, ahead

_log = Logger()


@dataclass(frozen=True, slots=True)
class Places:
    """Where a retrieve writes."""

    storage: Path
    quarantine: Path


def get(box: Toolbox, places: Places, remote: RemoteNode, query: Query, op: OperationContext) -> ItemStream[Instance]:
    """Lazy: the program runs from the first item asked for."""

    async def produce(stream: ItemStream[Instance]) -> AsyncGenerator[Instance, None]:
        folder = artifacts.folder_of(places.storage, "get", op.id)
        intake = Intake(query, folder, places.quarantine)
        run = ToolRun(box, op, folder=folder)
        try:
            with box.query_on_disk(op, query) as request:
                tool = box.tools["getscu"].path

                def command(node: RemoteNode) -> list[str]:
                    return argv.getscu(tool, box.log_config_for(op), node, query.model, request, folder)

                await run.start_to(remote, command, small_dictionary=True)
                stream.folder = folder
                async with aclosing(_instances(box, run, intake, folder, None)) as instances:
                    async for instance in instances:
                        yield instance
            _conclude(stream, run, intake, "get", remote)
        finally:
            await run.close()

    return ItemStream(produce)


def move(
    box: Toolbox,
    places: Places,
    receivers: Receivers,
    remote: RemoteNode,
    receiver: MoveReceiver,
    query: Query,
    op: OperationContext,
) -> ItemStream[Instance]:
    """Lazy. Waits for its turn on the receiver first: moves on one store AE run one after the other.

    The turn lasts as long as the C-MOVE, not as long as somebody takes to read what it brought.
    """

    async def produce(stream: ItemStream[Instance]) -> AsyncGenerator[Instance, None]:
        folder = artifacts.folder_of(places.storage, "move", op.id)
        intake = Intake(query, folder, places.quarantine)
        async with receivers.turn(receiver, remote, query, op) as delivery:
            own = delivery is None
            run = ToolRun(box, op, folder=folder, watched=own)
            try:
                with box.query_on_disk(op, query) as request:
                    tool = box.tools["movescu"].path
                    target = folder if own else None

                    def command(node: RemoteNode) -> list[str]:
                        log_config = box.log_config_for(op)
                        return argv.movescu(tool, log_config, node, query.model, receiver, request, target)

                    if delivery is not None:
                        delivery.listen(run.offer)
                    listens = (receiver.port,) if own else ()
                    await run.start_to(remote, command, small_dictionary=not own, listens=listens)
                    stream.folder = folder
                    async with aclosing(_instances(box, run, intake, folder, delivery)) as instances:
                        async for instance in instances:
                            yield instance
                _conclude(stream, run, intake, "move", remote, could_write=not (delivery and delivery.write_failed))
            finally:
                await run.close()
                stream.debug = _debug(run, op)
                await _keep_debug(box, places.storage, stream.debug)

    return ItemStream(lambda stream: ahead(produce(stream)))


async def _instances(
    box: Toolbox, run: ToolRun, intake: Intake, folder: Path, delivery: Delivery | None
) -> AsyncGenerator[Instance, None]:
    source, sweep = (folder, None) if delivery is None else (delivery.source, delivery.sweep)
    async with aclosing(run.batches(sweep)) as batches:
        async for names in batches:
            before = intake.put_aside_bytes
            instances = await box.in_thread(intake.take, [source / name for name in names])
            if delivery is not None:
                delivery.taken(names)
                if intake.put_aside_bytes > before:
                    delivery.put_aside(intake.put_aside_bytes - before)
            for instance in instances:
                yield instance


def _conclude(
    stream: ItemStream[Instance],
    run: ToolRun,
    intake: Intake,
    operation: str,
    remote: RemoteNode,
    *,
    could_write: bool = True,
) -> None:
    """Fill in the outcome, or raise what went wrong. Our own full disk comes first: a PACS only says that it failed."""
    assert run.record is not None
    assert stream.folder is not None
    if not could_write or artifacts.says_cannot_write(run.log.complaints):
        raise artifacts.storage_full()
    try:
        outcome = verdict.final_outcome(operation, f"C-{operation.upper()} RSP", run.log, run.record, remote)
    except DimseFailure:
        artifacts.raise_if_full(stream.folder)
        raise
    stream.outcome = outcome
    reconcile(outcome, intake)
    if not outcome.complete:
        artifacts.raise_if_full(stream.folder)
    if operation == "get" and outcome.suboperations is not None and outcome.suboperations.failed:
        outcome.warnings.append("a get takes uncompressed instances only; a move takes all as the PACS has them")


async def _keep_debug(box: Toolbox, storage: Path, debug: dict[str, object]) -> None:
    """Failing to is no reason to fail an answer, nor to hide why it failed."""
    try:
        await box.in_thread(artifacts.write_last_move, storage, debug)
    except OSError as error:
        _log.warn("{name} cannot be written: {error}", name=artifacts.LAST_MOVE, error=error)


def _debug(run: ToolRun, op: OperationContext) -> dict[str, object]:
    """The shape of ``movescu_last.json``: args, stdout, stderr, status. Log lines are what goes to stderr."""
    record = run.record
    lines = record.output.decode("utf-8", "replace").splitlines(keepends=True) if record else []
    return {
        "args": list(run.argv),
        "stdout": "".join(line for line in lines if not line.startswith(MARK)),
        "stderr": "".join(line for line in lines if line.startswith(MARK)),
        "status": None if record is None else record.exit_code,
        "signal": None if record is None else record.signal,
        "request_id": op.request_id,
        "operation_id": op.id,
    }
