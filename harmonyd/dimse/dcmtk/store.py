"""C-STORE with storescu: Part 10 files out, one result each."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from harmonyd.dimse import status as dimse_status
from harmonyd.dimse.dcmtk import argv, verdict
from harmonyd.dimse.dcmtk.log import Response, ToolLog
from harmonyd.dimse.dcmtk.run import Toolbox, ToolRun
from harmonyd.dimse.engine import OperationContext, RemoteNode, StoreResult
from harmonyd.dimse.errors import DimseError
from harmonyd.dimse.part10 import InstanceHeader, read_header
from harmonyd.dimse.streams import ItemStream
from harmonyd.dimse.tally import Tally
from harmonyd.dimse.uid import is_uid
from harmonyd.errors import DeadlinePassed, HarmonydError

_FILES_PER_RUN = 500
_UNCOMPRESSED = ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2")
_CONTEXTS_PER_ASSOCIATION = 128


def store(
    box: Toolbox, remote: RemoteNode, files: Sequence[Path], op: OperationContext
) -> ItemStream[StoreResult]:
    """Lazy. Raises when the association fails before any instance was answered."""

    async def produce(stream: ItemStream[StoreResult]) -> AsyncGenerator[StoreResult, None]:
        answered = 0
        tally = Tally(op.progress, len(files))
        failed: HarmonydError | None = None
        for number, batch in enumerate(_batches(files)):
            headers = await box.in_thread(lambda paths=batch: [read_header(path) for path in paths])
            log = ToolLog()
            if not isinstance(failed, DeadlinePassed):
                run, failed = await _run(box, remote, batch, headers, op, number, tally)
                log = run.log
            results = _results(log, headers, failed)
            answered += sum(result.status is not None for result in results)
            if not answered:
                raise failed or _failure(run, remote)
            for result in results:
                yield result
        stream.outcome.status = 0

    return ItemStream(produce)


async def _run(
    box: Toolbox,
    remote: RemoteNode,
    files: Sequence[Path],
    headers: Sequence[InstanceHeader],
    op: OperationContext,
    number: int,
    tally: Tally,
) -> tuple[ToolRun, HarmonydError | None]:
    """The run, over; and why it ended early, or did not begin: some files may have been stored by then."""
    profile = box.scratch / f"profile_{op.id}_{number}.cfg"

    def answered(response: Response) -> None:
        if response.kind == "C-STORE RSP":
            tally.add(response.status)

    run = ToolRun(box, op, folder=None, answered=answered)
    failed: HarmonydError | None = None
    tool = box.tools["storescu"].path
    try:
        profile.write_text(association_profile(headers), encoding="ascii")
        await run.start_to(remote, lambda node: argv.storescu(tool, box.log_config, node, profile, files), reads=files)
        await run.finish()
    except (DeadlinePassed, DimseError) as error:
        failed = error
    finally:
        await run.close()
        profile.unlink(missing_ok=True)
    return run, failed


def _failure(run: ToolRun, remote: RemoteNode) -> HarmonydError:
    assert run.record is not None
    return verdict.failure("store", run.log, run.record, remote)


def association_profile(headers: Iterable[InstanceHeader]) -> str:
    """An association configuration (DCMTK asconfig.txt) with the presentation contexts these objects need.

    A context each for SOP class and compressed transfer syntax, so that nothing is transcoded; uncompressed objects
    also offer the two uncompressed little endian syntaxes: every node takes Implicit VR Little Endian (PS3.5 10.1).
    What is no UID never enters the file: a line break in it would be a line of the configuration.
    """
    pairs = dict.fromkeys((header.sop_class_uid, header.transfer_syntax_uid) for header in headers)
    pairs = dict.fromkeys(pair for pair in pairs if all(map(is_uid, pair)))
    syntaxes = {uid: f"TS{number}" for number, uid in enumerate(dict.fromkeys(uid for _, uid in pairs), 1)}
    lines = ["[[TransferSyntaxes]]"]
    for uid, name in syntaxes.items():
        lines += [f"[{name}]", f"TransferSyntax1 = {uid}"]
    lines.append("[Uncompressed]")
    lines += [f"TransferSyntax{number} = {uid}" for number, uid in enumerate(_UNCOMPRESSED, 1)]
    contexts = list(dict.fromkeys(_contexts(pairs, syntaxes)))[:_CONTEXTS_PER_ASSOCIATION]
    lines += ["[[PresentationContexts]]", "[Contexts]"]
    lines += [f"PresentationContext{number} = {context}" for number, context in enumerate(contexts, 1)]
    lines += ["[[Profiles]]", "[Default]", "PresentationContexts = Contexts", ""]
    return "\n".join(lines)


def _contexts(pairs: Iterable[tuple[str, str]], syntaxes: dict[str, str]) -> Iterator[str]:
    for sop_class, syntax in pairs:
        yield f"{sop_class}\\{syntaxes[syntax]}"
        if syntax in (*_UNCOMPRESSED, "1.2.840.10008.1.2.2"):
            yield f"{sop_class}\\Uncompressed"


def _results(log: ToolLog, headers: Sequence[InstanceHeader], failed: HarmonydError | None) -> list[StoreResult]:
    answers = {response.message_id: response for response in log.responses if response.kind == "C-STORE RSP"}
    results = []
    for number, header in enumerate(headers, 1):
        answer = answers.get(number)
        status = None if answer is None else answer.status
        if status is None:
            text = "not sent, or not answered"
            if failed is not None:
                text = f"{'not answered in time' if isinstance(failed, DeadlinePassed) else text}: {failed.detail}"
        else:
            text = dimse_status.text("store", status)
        comment = None if answer is None else answer.comment
        results.append(StoreResult(header.sop_class_uid, header.sop_instance_uid, status, text, comment=comment))
    return results


def _batches(files: Sequence[Path]) -> Iterator[list[Path]]:
    remaining = iter(files)
    while batch := list(islice(remaining, _FILES_PER_RUN)):
        yield batch
