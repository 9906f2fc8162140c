"""C-FIND as an SCP: what a handler finds goes out as it comes, until somebody has enough of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from asking_kit import CT, FIND, MOVE, Asking, all_responses, ask, keys
from twisted.internet.defer import Deferred

from harmonyd.dimse.engine import QueryModel
from harmonyd.dimse.errors import AssociationAborted
from harmonyd.dimse.native import core, names
from harmonyd.dimse.serving import NotServed, Pending


@pytest.fixture
def asking(started_reactor: Any, tmp_path: Path) -> Iterator[Asking]:
    """Not started yet; at the end nothing of it is left."""
    made = Asking(started_reactor, tmp_path)
    yield made
    assert not made.listeners.association_count()
    pytest_twisted.blockon(Deferred.fromCoroutine(made.stop()))


def find(message_id: int = 1) -> core.Command:
    return core.c_find_rq(message_id, FIND)


async def ended(assoc: Any, asking: Asking, eventually: Any) -> None:
    await assoc.release()
    await eventually(lambda: not asking.listeners.association_count())


@pytest_twisted.ensureDeferred
async def test_matches_and_a_final_response(asking: Asking, eventually: Any) -> None:
    """In their order, with their own pending statuses; the handler knows who asks for what."""
    asking.steps = [Pending(keys(PatientID="1")), Pending(keys(PatientID="2"), 0xFF01)]
    await asking.start()
    assoc = await asking.call(FIND)
    responses = await all_responses(assoc, ask(assoc, FIND, find(), keys(PatientID="*")))
    assert [(command.status, data) for command, data in responses] == [
        (0xFF00, keys(PatientID="1")), (0xFF01, keys(PatientID="2")), (0x0000, b""),
    ]  # fmt: skip
    (question,) = asking.asked
    assert (question.operation, question.model, question.message_id) == ("find", QueryModel.STUDY_ROOT, 1)
    assert question.identifier == keys(PatientID="*")
    assert (question.association.calling_aet, question.association.called_aet) == ("WS", "QR")
    await ended(assoc, asking, eventually)


@pytest_twisted.ensureDeferred
async def test_what_is_not_served(asking: Asking, eventually: Any) -> None:
    """Has its status and comment, as much of it as there is room for; the association goes on."""
    asking.steps = [Pending(keys()), NotServed(0xC001, "Grund: ü " * 10)]
    await asking.start()
    assoc = await asking.call(FIND)
    for number in (1, 2):
        command, _ = (await all_responses(assoc, ask(assoc, FIND, find(number))))[-1]
        assert (command.status, command.error_comment) == (0xC001, ("Grund: ? " * 10)[:64].strip())
    await ended(assoc, asking, eventually)


@pytest_twisted.ensureDeferred
async def test_a_cancelled_question(asking: Asking, eventually: Any) -> None:
    """What is behind it ends at once, the final status is Cancel, and the association can be used again."""
    asking.steps = [Pending(keys()), Deferred()]
    await asking.start()
    assoc = await asking.call(FIND)
    message_id = ask(assoc, FIND, find(5))
    assert (await assoc.response(message_id))[0].status == 0xFF00
    assoc.send(assoc.context(FIND).id, core.c_cancel_rq(4))  # of something else
    assoc.send(assoc.context(FIND).id, core.c_cancel_rq(message_id))
    assert (await assoc.response(message_id))[0].status == 0xFE00
    assert asking.closed == 1
    assoc.send(assoc.context(FIND).id, core.c_cancel_rq(message_id))  # too late, which happens
    asking.steps = []
    assert [command.status for command, _ in await all_responses(assoc, ask(assoc, FIND, find(6)))] == [0]
    await ended(assoc, asking, eventually)


@pytest_twisted.ensureDeferred
async def test_a_question_that_is_cancelled_in_the_same_breath(asking: Asking, eventually: Any) -> None:
    """C-CANCEL may be there before the work begins; it ends all the same."""
    asking.steps = [Pending(keys()), Deferred()]
    await asking.start()
    assoc = await asking.call(FIND)
    context_id, association = assoc.context(FIND).id, assoc.connection.association
    association.send(context_id, find(5), has_data=True)
    association.send_data(context_id, keys(), True)
    association.send(context_id, core.c_cancel_rq(5))
    assoc.connection.flush()
    assert (await all_responses(assoc, 5))[-1][0].status == 0xFE00
    assert asking.closed == asking.taken // 2
    await ended(assoc, asking, eventually)


@pytest.mark.parametrize("way", ["abort", "cut", "release"])
@pytest_twisted.ensureDeferred
async def test_a_caller_that_leaves(asking: Asking, eventually: Any, way: str) -> None:
    """Ends what is behind its question."""
    asking.steps = [Pending(keys()), Deferred()]
    await asking.start()
    assoc = await asking.call(FIND)
    await assoc.response(ask(assoc, FIND, find()))
    await getattr(assoc, "release")() if way == "release" else getattr(assoc.connection, way)()  # noqa: B009
    await eventually(lambda: asking.closed)
    await eventually(lambda: not asking.listeners.association_count())


@pytest_twisted.ensureDeferred
async def test_a_caller_that_does_not_read(asking: Asking, eventually: Any) -> None:
    """Is not written to without end, and ends the question when it leaves."""
    big = Pending(keys(StudyDescription="x" * 60) + bytes(100_000))
    asking.steps = [big] * 1000
    await asking.start()
    assoc = await asking.call(FIND)
    assoc.connection.transport.pauseProducing()
    ask(assoc, FIND, find())
    await eventually(lambda: asking.taken)
    before = -1
    while before != asking.taken:
        before, turns = asking.taken, iter(range(20))
        await eventually(lambda: next(turns, None) is None)  # noqa: B023 - of this turn
    assert asking.taken < 300
    assoc.connection.cut()
    await eventually(lambda: asking.closed)
    await eventually(lambda: not asking.listeners.association_count())


@pytest.mark.parametrize("works", [False, True])
@pytest_twisted.ensureDeferred
async def test_who_takes_no_answers_is_not_read_on(asking: Asking, eventually: Any, works: bool) -> None:
    """Requests without end would be answers without end, in memory; whether or not an operation is under way."""
    asking.steps = [Deferred()]
    await asking.start()
    assoc = await asking.call(FIND, names.VERIFICATION)
    if works:
        ask(assoc, FIND, find(1))
        await eventually(lambda: asking.taken)
    (session,) = asking.sessions
    session.connection.pauseProducing()  # as its transport says when the peer has left much
    answers: list[int] = []
    respond = session.respond
    session.respond = lambda context, command, *rest: (  # type: ignore[method-assign]
        answers.append(command.message_id or 0), respond(context, command, *rest)
    )
    for number in range(2, 8):
        assoc.send(assoc.context(names.VERIFICATION).id, core.c_echo_rq(number))
    await eventually(lambda: session.connection.has_events)
    assert len(answers) <= 1
    session.connection.resumeProducing()
    for number in range(2, 8):
        assert (await assoc.response(number))[0].status == (0x0213 if works else 0)
    await ended(assoc, asking, eventually)


@pytest_twisted.ensureDeferred
async def test_one_operation_at_a_time(asking: Asking, eventually: Any) -> None:
    """Asynchronous operations are not negotiated: another request is refused, with its data set; the first goes on."""
    go_on: Deferred[None] = Deferred()
    asking.steps = [go_on, Pending(keys())]
    await asking.start()
    assoc = await asking.call(FIND, names.VERIFICATION)
    ask(assoc, FIND, find(1))
    assert (await assoc.response(ask(assoc, FIND, find(2))))[0].status == 0x0213
    assoc.send(assoc.context(names.VERIFICATION).id, core.c_echo_rq(3))
    assert (await assoc.response(3))[0].status == 0x0213
    go_on.callback(None)
    assert [command.status for command, _ in await all_responses(assoc, 1)] == [0xFF00, 0]
    assert len(asking.asked) == 1
    await ended(assoc, asking, eventually)


@pytest_twisted.ensureDeferred
async def test_a_caller_may_wait_in_silence(asking: Asking, eventually: Any) -> None:
    """For longer than it may be silent otherwise: it is us who work."""
    asking.steps = [Deferred()]
    await asking.start(association_timeout_secs=0.1)
    assoc = await asking.call(FIND)
    message_id = ask(assoc, FIND, find())
    await eventually(lambda: asking.taken)
    clock = asking.reactor.seconds()
    await eventually(lambda: asking.reactor.seconds() > clock + 0.4)
    assoc.send(assoc.context(FIND).id, core.c_cancel_rq(message_id))
    assert (await assoc.response(message_id))[0].status == 0xFE00
    await ended(assoc, asking, eventually)


@pytest_twisted.ensureDeferred
async def test_identifiers_that_cannot_be(asking: Asking, eventually: Any) -> None:
    """None at all, or one of more than a megabyte, is refused; nobody is asked, and the association goes on."""
    await asking.start()
    assoc = await asking.call(FIND, MOVE)
    assoc.send(assoc.context(FIND).id, find(1))
    assert (await assoc.response(1))[0].status == 0xC000
    command, _ = (await all_responses(assoc, ask(assoc, FIND, find(2), bytes(1_000_002))))[0]
    assert (command.status, "1000000 bytes" in (command.error_comment or "")) == (0xC000, True)
    assert (await all_responses(assoc, ask(assoc, MOVE, find(3))))[0][0].status == 0x0122
    assert not asking.asked
    await ended(assoc, asking, eventually)


@pytest_twisted.ensureDeferred
async def test_what_is_not_offered_is_not_accepted(asking: Asking, eventually: Any) -> None:
    """Neither another service, nor objects where nothing can be stored."""
    await asking.start(services=("find",))
    assoc = await asking.call(FIND, MOVE, CT, names.VERIFICATION, names.FIND[QueryModel.WORKLIST])
    accepted = {context.abstract_syntax for context in assoc.contexts.accepted()}
    assert accepted == {FIND, names.VERIFICATION, names.FIND[QueryModel.WORKLIST]}
    assoc.send(assoc.context(FIND).id, core.c_move_rq(1, MOVE, "X"), keys())
    assert (await assoc.response(1))[0].status == 0x0211
    await ended(assoc, asking, eventually)


@pytest_twisted.ensureDeferred
async def test_a_full_disk_stops_no_questions(asking: Asking, eventually: Any) -> None:
    """Room is needed for objects that are received, and for nothing else."""
    await asking.start(services=("find",))
    asking.spool.set_full("no room")
    assoc = await asking.call(FIND)
    assert [command.status for command, _ in await all_responses(assoc, ask(assoc, FIND, find()))] == [0]
    await ended(assoc, asking, eventually)


@pytest_twisted.ensureDeferred
async def test_the_end_of_the_endpoint(asking: Asking, eventually: Any) -> None:
    """Ends what is under way."""
    asking.steps = [Deferred()]
    await asking.start()
    assoc = await asking.call(FIND)
    message_id = ask(assoc, FIND, find())
    await eventually(lambda: asking.taken)
    await asking.scp.pause()
    assert asking.closed == 1
    with pytest.raises(AssociationAborted):
        await assoc.response(message_id)


@pytest_twisted.ensureDeferred
async def test_our_fault(asking: Asking, eventually: Any, logged_failures: Any) -> None:
    """A handler that raises something else ends the association."""
    asking.steps = [ZeroDivisionError()]
    await asking.start()
    assoc = await asking.call(FIND)
    with pytest.raises(AssociationAborted):
        await assoc.response(ask(assoc, FIND, find()))
    assert logged_failures.flush(ZeroDivisionError)
    await eventually(lambda: not asking.listeners.association_count())
