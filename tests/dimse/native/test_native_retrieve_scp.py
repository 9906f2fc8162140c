"""C-GET and C-MOVE as an SCP: every object goes on when it has come, and the counters tell the truth."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from asking_kit import CT, GET, MOVE, Asking, Retrieved, all_responses, ask, instance, served
from native_inbound_kit import NativeInbound
from pydicom import dcmread
from pydicom.filereader import read_dataset
from twisted.internet.defer import Deferred

from harmonyd.dimse.engine import RemoteNode
from harmonyd.dimse.native import core, retrieve_scp
from harmonyd.dimse.recode import EXPLICIT_VR_LE, IMPLICIT_VR_LE
from harmonyd.dimse.serving import NotServed
from harmonyd.testing.data import MadeStudy, make_study, shipped_folder
from harmonyd.testing.processes import free_port

CT_IN = ((CT, EXPLICIT_VR_LE),)
Ended = Callable[[Any], Awaitable[None]]


@pytest.fixture
def asking(started_reactor: Any, tmp_path: Path) -> Iterator[Asking]:
    """Not started yet; at the end nothing of it is left."""
    made = Asking(started_reactor, tmp_path)
    yield made
    assert not made.listeners.association_count()
    pytest_twisted.blockon(Deferred.fromCoroutine(made.stop()))


@pytest.fixture
def three(tmp_path: Path) -> MadeStudy:
    """Small CT instances."""
    return make_study(tmp_path / "three", 3, size=16)


@pytest.fixture
def ended(asking: Asking, eventually: Any) -> Ended:
    """Release an association, and wait until it is over for the server, too."""

    async def end(assoc: Any) -> None:
        await assoc.release()
        await eventually(lambda: not asking.listeners.association_count())

    return end


@pytest.fixture
def receiver(started_reactor: Any, tmp_path: Path) -> Iterator[NativeInbound]:
    """A destination, which answers to WS2."""
    (tmp_path / "receiver").mkdir()
    made = NativeInbound(started_reactor, tmp_path / "receiver")
    pytest_twisted.blockon(Deferred.fromCoroutine(made.start()))
    yield made
    pytest_twisted.blockon(Deferred.fromCoroutine(made.stop()))


def get(message_id: int = 1) -> core.Command:
    return core.c_get_rq(message_id, GET)


def retrieved(study: MadeStudy, *more: Any, **given: Any) -> Retrieved:
    return Retrieved([*map(instance, study.files), *more], **given)


def counters(command: core.Command) -> tuple[Any, ...]:
    return command.status, command.remaining, command.completed, command.failed, command.warning


def failed_uids(data: bytes) -> list[str]:
    value = read_dataset(BytesIO(data), False, True).FailedSOPInstanceUIDList
    return [value] if isinstance(value, str) else list(value)


# --- C-GET


@pytest_twisted.ensureDeferred
async def test_objects_with_counters(asking: Asking, three: MadeStudy, ended: Ended) -> None:
    """One C-STORE and one Pending response for each, and then Success."""
    asking.retrieval = retrieved(three, total=3)
    await asking.start()
    assoc = await asking.call(GET, receives=CT_IN)
    ask(assoc, GET, get())
    stores, responses = await served(assoc)
    assert [store.affected_sop_instance_uid for store in stores] == list(three.sop_uids)
    assert [counters(command) for command, _ in responses] == [
        (0xFF00, 2, 1, 0, 0), (0xFF00, 1, 2, 0, 0), (0xFF00, 0, 3, 0, 0), (0x0000, None, 3, 0, 0),
    ]  # fmt: skip
    assert asking.retrieval.closed
    await ended(assoc)


@pytest_twisted.ensureDeferred
async def test_what_remains_may_not_be_known(asking: Asking, three: MadeStudy, ended: Ended) -> None:
    """Then it is not told."""
    asking.retrieval = retrieved(three)
    await asking.start()
    assoc = await asking.call(GET, receives=CT_IN)
    ask(assoc, GET, get())
    _, responses = await served(assoc)
    assert [command.remaining for command, _ in responses] == [None] * 4
    await ended(assoc)


@pytest.mark.parametrize(
    ("statuses", "final", "uids"),
    [
        ((0x0000, 0xA700, 0x0000), (0xB000, None, 2, 1, 0), [1]),
        ((0xB000, 0x0000, 0x0000), (0xB000, None, 2, 0, 1), []),
        ((0xC000, 0xC000, 0xC000), (0xA702, None, 0, 3, 0), [0, 1, 2]),
    ],
)
@pytest_twisted.ensureDeferred
async def test_what_the_caller_answers(
    asking: Asking, three: MadeStudy, ended: Ended, statuses: Any, final: Any, uids: list[int]
) -> None:
    """Failures and warnings are counted and named: partial is said to be partial."""
    asking.retrieval = retrieved(three, total=3)
    await asking.start()
    assoc = await asking.call(GET, receives=CT_IN)
    ask(assoc, GET, get())
    _, responses = await served(assoc, statuses)
    command, data = responses[-1]
    assert counters(command) == final
    assert (failed_uids(data) if data else []) == [three.sop_uids[number] for number in uids]
    await ended(assoc)


@pytest_twisted.ensureDeferred
async def test_what_may_not_be_all(asking: Asking, three: MadeStudy, ended: Ended) -> None:
    """Is no Success, though nothing failed; the comment says why."""
    asking.retrieval = retrieved(three, total=3, doubt="there may be more")
    await asking.start()
    assoc = await asking.call(GET, receives=CT_IN)
    ask(assoc, GET, get())
    _, responses = await served(assoc)
    command, data = responses[-1]
    assert (counters(command), command.error_comment, data) == ((0xB000, None, 3, 0, 0), "there may be more", b"")
    await ended(assoc)


@pytest_twisted.ensureDeferred
async def test_what_a_backend_could_not_bring(asking: Asking, three: MadeStudy, ended: Ended) -> None:
    """Has failed, under the UIDs that it named."""
    asking.retrieval = retrieved(three, total=5, missed=2, missed_uids=("1.2.3", "1.2.4"))
    await asking.start()
    assoc = await asking.call(GET, receives=CT_IN)
    ask(assoc, GET, get())
    _, responses = await served(assoc)
    command, data = responses[-1]
    assert (counters(command), failed_uids(data)) == ((0xB000, None, 3, 2, 0), ["1.2.3", "1.2.4"])
    assert responses[2][0].remaining == 2
    await ended(assoc)


@pytest.mark.parametrize(
    ("total", "final"), [(5, (0xB000, None, 3, 2, 0)), (None, (0xB000, None, 3, 1, 0)), (3, (0xB000, None, 3, 1, 0))]
)
@pytest_twisted.ensureDeferred
async def test_a_backend_that_fails_under_way(
    asking: Asking, three: MadeStudy, ended: Ended, total: int | None, final: Any
) -> None:
    """What could not be tried has failed: all of it where it is known, one at least."""
    asking.retrieval = retrieved(three, NotServed(0xC001, "it hung up"), total=total)
    await asking.start()
    assoc = await asking.call(GET, receives=CT_IN)
    ask(assoc, GET, get())
    _, responses = await served(assoc)
    command, _ = responses[-1]
    assert (counters(command), command.error_comment) == (final, "it hung up")
    await ended(assoc)


@pytest_twisted.ensureDeferred
async def test_a_retrieve_that_cannot_be(asking: Asking, ended: Ended) -> None:
    """Ends with the status of what was wrong, and what a node says has failed."""
    asking.retrieval = NotServed(0xA702, "no destination", failed=4)
    await asking.start()
    assoc = await asking.call(GET, receives=CT_IN)
    ((command, data),) = await all_responses(assoc, ask(assoc, GET, get()))
    assert (counters(command), command.error_comment, data) == ((0xA702, None, 0, 4, 0), "no destination", b"")
    asking.retrieval = Retrieved([], total=0)
    ((command, _),) = await all_responses(assoc, ask(assoc, GET, get(2)))
    assert counters(command) == (0x0000, None, 0, 0, 0)
    await ended(assoc)


@pytest_twisted.ensureDeferred
async def test_objects_that_the_caller_does_not_take(asking: Asking, three: MadeStudy, ended: Ended) -> None:
    """Without a presentation context they fail, one by one; uncompressed ones are converted where that helps."""
    compressed = instance(shipped_folder() / "JPEG2000.dcm")
    asking.retrieval = Retrieved([*map(instance, three.files), compressed], total=4)
    await asking.start()
    assoc = await asking.call(GET, receives=[(CT, IMPLICIT_VR_LE), (compressed.sop_class_uid, EXPLICIT_VR_LE)])
    ask(assoc, GET, get())
    stores, responses = await served(assoc)
    command, data = responses[-1]
    assert len(stores) == 3
    assert (counters(command), failed_uids(data)) == ((0xB000, None, 3, 1, 0), [compressed.sop_instance_uid])
    assert "takes no" in (command.error_comment or "")
    await ended(assoc)


@pytest_twisted.ensureDeferred
async def test_a_file_that_is_gone(asking: Asking, three: MadeStudy, ended: Ended) -> None:
    """Fails alone."""
    asking.retrieval = retrieved(three, total=3)
    three.files[1].unlink()
    await asking.start()
    assoc = await asking.call(GET, receives=CT_IN)
    ask(assoc, GET, get())
    _, responses = await served(assoc)
    assert (counters(responses[-1][0]), failed_uids(responses[-1][1])) == ((0xB000, None, 2, 1, 0), [three.sop_uids[1]])
    await ended(assoc)


@pytest_twisted.ensureDeferred
async def test_a_cancel_lets_the_object_under_way_arrive(asking: Asking, three: MadeStudy, ended: Ended) -> None:
    """Then the final response is Cancel, and tells what remains."""
    asking.retrieval = retrieved(three, total=3)
    await asking.start()
    assoc = await asking.call(GET, receives=CT_IN)
    ask(assoc, GET, get())
    stores, responses = await served(assoc, cancel_after=2)
    assert len(stores) == 2
    assert counters(responses[-1][0]) == (0xFE00, 1, 2, 0, 0)
    assert asking.retrieval.closed
    await ended(assoc)


@pytest_twisted.ensureDeferred
async def test_a_cancel_while_nothing_comes(asking: Asking, three: MadeStudy, ended: Ended) -> None:
    """Ends the waiting at once."""
    asking.retrieval = retrieved(three, Deferred(), total=9)
    await asking.start()
    assoc = await asking.call(GET, receives=CT_IN)
    ask(assoc, GET, get())
    stores, responses = await served(assoc, cancel_after=3)
    assert (len(stores), counters(responses[-1][0])) == (3, (0xFE00, 6, 3, 0, 0))
    await ended(assoc)


@pytest_twisted.ensureDeferred
async def test_a_caller_that_leaves(asking: Asking, three: MadeStudy, eventually: Any) -> None:
    """In the middle of it: what is behind ends."""
    asking.retrieval = retrieved(three, total=3)
    await asking.start()
    assoc = await asking.call(GET, receives=CT_IN)
    ask(assoc, GET, get())
    await assoc.receive()
    assoc.abort()
    await eventually(lambda: not asking.listeners.association_count())
    assert asking.retrieval.closed == 1


@pytest_twisted.ensureDeferred
async def test_a_caller_that_does_not_answer(asking: Asking, three: MadeStudy, eventually: Any) -> None:
    """To a C-STORE, for longer than it may be silent: its association is ended."""
    asking.retrieval = retrieved(three, total=3)
    await asking.start(association_timeout_secs=0.2)
    assoc = await asking.call(GET, receives=CT_IN)
    ask(assoc, GET, get())
    await eventually(lambda: not asking.listeners.association_count())
    assert asking.retrieval.closed == 1
    assoc.abort()


@pytest_twisted.ensureDeferred
async def test_a_slow_backend(
    asking: Asking, three: MadeStudy, ended: Ended, monkeypatch: pytest.MonkeyPatch, eventually: Any
) -> None:
    """The caller is told now and then that it goes on, so that its own timeout does not pass."""
    monkeypatch.setattr(retrieve_scp, "ALIVE_SECS", 0.05)
    slow: Deferred[None] = Deferred()
    asking.retrieval = Retrieved([slow], total=3)
    await asking.start()
    assoc = await asking.call(GET, receives=CT_IN)
    message_id = ask(assoc, GET, get())
    for _ in range(2):
        assert counters((await assoc.response(message_id))[0]) == (0xFF00, 3, 0, 0, 0)
    slow.callback(None)
    assert (await all_responses(assoc, message_id))[-1][0].status == 0x0000
    await ended(assoc)


# --- C-MOVE


def destination(port: int, **options: Any) -> RemoteNode:
    given = {"connect_timeout_secs": 5, "association_timeout_secs": 5, "idle_secs": 0.5, **options}
    return RemoteNode("move destination SCP", "SCP", "127.0.0.1", port, "QR", **given)


def move(message_id: int = 1, to: str = "SCP") -> core.Command:
    return core.c_move_rq(message_id, MOVE, to)


@pytest_twisted.ensureDeferred
async def test_a_move(asking: Asking, receiver: NativeInbound, ended: Ended, tmp_path: Path) -> None:
    """Objects of several kinds arrive as they are over one association, and say who has asked for them."""
    names = ("CT_small.dcm", "MR_small_RLE.dcm", "JPEG2000.dcm", "test-SR.dcm", "MR_small.dcm", "image_dfl.dcm")
    paths = [shipped_folder() / name for name in names]
    asking.retrieval = Retrieved(list(map(instance, paths)), total=len(paths))
    asking.destinations["SCP"] = destination(receiver.port)
    await asking.start()
    assoc = await asking.call(MOVE)
    responses = await all_responses(assoc, ask(assoc, MOVE, move(9)))
    assert counters(responses[-1][0]) == (0x0000, None, 6, 0, 0)
    assert [command.remaining for command, _ in responses] == [5, 4, 3, 2, 1, 0, None]
    arrivals = receiver.spool.arrivals
    assert {arrival.move_originator_aet for arrival in arrivals} == {"WS"}
    assert {arrival.association.calling_aet for arrival in arrivals} == {"QR"}
    syntaxes = [dcmread(path, stop_before_pixels=True).file_meta.TransferSyntaxUID for path in paths]
    assert [arrival.instance.transfer_syntax_uid for arrival in arrivals] == syntaxes
    assert len({arrival.association.id for arrival in arrivals}) <= 3  # one, and one more for each new kind
    await ended(assoc)


@pytest_twisted.ensureDeferred
async def test_the_association_to_a_destination(
    asking: Asking, receiver: NativeInbound, ended: Ended, three: MadeStudy
) -> None:
    """Is used again by the next C-MOVE."""
    asking.destinations["SCP"] = destination(receiver.port)
    await asking.start()
    assoc = await asking.call(MOVE)
    for number in (1, 2):
        asking.retrieval = retrieved(three, total=3)
        assert (await all_responses(assoc, ask(assoc, MOVE, move(number))))[-1][0].completed == 3
    assert len({arrival.association.id for arrival in receiver.spool.arrivals}) == 1
    await ended(assoc)


@pytest_twisted.ensureDeferred
async def test_destinations_that_cannot_be(asking: Asking, three: MadeStudy, ended: Ended) -> None:
    """Unknown ones, before anything is retrieved; and those that nobody answers at."""
    asking.retrieval = retrieved(three, total=3)
    asking.destinations["AWAY"] = destination(free_port())
    await asking.start()
    assoc = await asking.call(MOVE)
    ((command, _),) = await all_responses(assoc, ask(assoc, MOVE, move(1, "NOBODY")))
    assert (command.status, command.error_comment) == (0xA801, "NOBODY is unknown")
    assert not asking.asked
    command, _ = (await all_responses(assoc, ask(assoc, MOVE, move(2, "AWAY"))))[-1]
    assert counters(command) == (0xA702, None, 0, 3, 0)
    assert (command.error_comment or "").startswith("Cannot connect to SCP@127.0.0.1")
    assert asking.retrieval.closed
    await ended(assoc)


@pytest_twisted.ensureDeferred
async def test_what_a_destination_refuses(
    asking: Asking, receiver: NativeInbound, three: MadeStudy, ended: Ended
) -> None:
    """Has failed."""
    receiver.spool.refused = {three.sop_uids[0]}
    asking.retrieval = retrieved(three, total=3)
    asking.destinations["SCP"] = destination(receiver.port)
    await asking.start()
    assoc = await asking.call(MOVE)
    command, data = (await all_responses(assoc, ask(assoc, MOVE, move())))[-1]
    assert (counters(command), failed_uids(data)) == ((0xB000, None, 2, 1, 0), [three.sop_uids[0]])
    await ended(assoc)


@pytest_twisted.ensureDeferred
async def test_a_cancelled_move(asking: Asking, receiver: NativeInbound, three: MadeStudy, ended: Ended) -> None:
    """Has brought what it has brought."""
    asking.retrieval = retrieved(three, Deferred(), total=5)
    asking.destinations["SCP"] = destination(receiver.port)
    await asking.start()
    assoc = await asking.call(MOVE)
    message_id = ask(assoc, MOVE, move())
    for _ in range(3):
        await assoc.response(message_id)
    assoc.send(assoc.context(MOVE).id, core.c_cancel_rq(message_id))
    command, _ = (await all_responses(assoc, message_id))[-1]
    assert counters(command) == (0xFE00, 2, 3, 0, 0)
    assert len(receiver.spool.arrivals) == 3
    await ended(assoc)
