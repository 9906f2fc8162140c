"""Whom an object delivered to a port of our own is for: the move that asked, an endpoint, or nobody."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred

from harmonyd.dimse.associate import APPLICATION_CONTEXT, AssociateRequest, Rejection
from harmonyd.dimse.dcmtk.deliveries import MAX_ASSOCIATIONS, UNASKED, Expectation, MoveDeliveries
from harmonyd.dimse.dcmtk.run import Toolbox
from harmonyd.dimse.engine import Association
from harmonyd.testing.data import make_ct, uid_for

STUDY_1, STUDY_2 = uid_for("one"), uid_for("two")
REQUEST = AssociateRequest(1, "DEST", "PACS", APPLICATION_CONTEXT)


class Inbound:
    """An association in name only."""

    def __init__(self, calling_aet: str = "PACS", originator: str = "") -> None:
        self.association = Association("0" * 32, "DEST", calling_aet, "127.0.0.1")
        self.originator = originator
        self.given_back: list[Path] = []
        self.was_stopped = False
        self.unseen: list[Path] = []
        self.owner: Any = None

    def originator_of(self, sop_instance_uid: str) -> str:
        return self.originator

    def settled(self, path: Path) -> None:
        self.given_back.append(path)

    async def stop(self) -> None:
        self.was_stopped = True

    def look(self) -> None:
        while self.unseen:
            self.owner.file_closed(self, self.unseen.pop())


class Listener:
    """A port in name only."""

    def __init__(self) -> None:
        self.associations: set[Any] = set()
        self.number = 0

    def count(self, owner: object) -> int:
        return self.number


class Endpoint:
    """The host that an endpoint would be."""

    def __init__(self) -> None:
        self.files: list[Path] = []

    def unclaimed(self, association: object, path: Path) -> None:
        self.files.append(path)


class Bench:
    """Deliveries that may put so many bytes in quarantine."""

    def __init__(self, reactor: Any, folder: Path) -> None:
        self.left_bytes = 10**9
        self.folder = folder / "incoming"
        self.folder.mkdir()
        self.quarantine = folder / "quarantine"
        nothing: Any = None
        box = Toolbox(reactor, nothing, {}, folder, folder, folder, False)
        self.deliveries = MoveDeliveries(box, "DEST", self.folder, self.quarantine, self._may_put_aside)
        self.listener = Listener()
        self.deliveries.listener = self.listener  # type: ignore[assignment]
        self._number = 0

    def _may_put_aside(self, more: int) -> bool:
        self.left_bytes -= more
        return self.left_bytes > 0

    def expect(self, aet: str = "HARMONY_SCU", **wanted: str) -> tuple[Expectation, list[str]]:
        """A move, and what it was offered."""
        offered: list[str] = []
        expectation = Expectation({key: frozenset([uid]) for key, uid in wanted.items()}, aet, "PACS", offered.append)
        self.deliveries.expect(expectation)
        return expectation, offered

    def file(self, study: str) -> Path:
        """A new object of this study."""
        self._number += 1
        path = self.folder / f"CT.{self._number}"
        make_ct(path, study_uid=study, series_uid="2.25.1", instance_number=self._number, patient_id="P", size=8)
        return path

    async def arrive(self, path: Path, inbound: Inbound, host: Endpoint | None = None) -> Path:
        """An object that was received, by an endpoint or by nobody else, and is sorted when this returns."""
        if host is None:
            self.deliveries.file_closed(inbound, path)  # type: ignore[arg-type]
        else:
            self.deliveries.claim(inbound, path, host)  # type: ignore[arg-type]
        await self.deliveries.settle()
        return path

    @property
    def reasons(self) -> list[str]:
        return [json.loads(path.read_text())["reason"] for path in self.quarantine.glob("*.json")]


@pytest.fixture
def bench(started_reactor: Any, tmp_path: Path) -> Bench:
    return Bench(started_reactor, tmp_path)


@pytest.fixture
def inbound() -> Iterator[Inbound]:
    """An association that was still up at the end, unless the test says otherwise."""
    made = Inbound()
    yield made
    assert not made.was_stopped


# --- what was asked for -----------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_each_object_to_its_move(bench: Bench, inbound: Inbound) -> None:
    """Moves of two studies get what is of their study, over whichever association it comes."""
    _, first = bench.expect(study_instance_uid=STUDY_1)
    _, second = bench.expect(study_instance_uid=STUDY_2)
    ones = [await bench.arrive(bench.file(STUDY_1), inbound) for _ in range(2)]
    two = await bench.arrive(bench.file(STUDY_2), inbound)
    assert first == [str(path) for path in ones]
    assert second == [str(two)]
    assert bench.reasons == []


@pytest.mark.parametrize("originator", ["", "HARMONY_SCU", "PACS"])
@pytest_twisted.ensureDeferred
async def test_originator_that_fits(bench: Bench, originator: str) -> None:
    """One that names our AE title as its Move Originator, or none, or the PACS's, is for the move that asked for it."""
    _, offered = bench.expect(study_instance_uid=STUDY_1)
    path = await bench.arrive(bench.file(STUDY_1), Inbound(originator=originator))
    assert offered == [str(path)]


@pytest_twisted.ensureDeferred
async def test_originator_that_does_not_fit(bench: Bench) -> None:
    """An object that names somebody else was moved by somebody else, though a move of ours wants the same study."""
    _, offered = bench.expect(study_instance_uid=STUDY_1)
    await bench.arrive(bench.file(STUDY_1), Inbound(originator="WORKSTATION"))
    assert offered == []
    assert bench.reasons == [f"arrived at DEST {UNASKED}"]


@pytest_twisted.ensureDeferred
async def test_an_object_that_is_cut(bench: Bench, inbound: Inbound) -> None:
    """One whose beginning says what it is goes to its move, which counts what is damaged."""
    _, offered = bench.expect(study_instance_uid=STUDY_1)
    path = bench.file(STUDY_1)
    path.write_bytes(path.read_bytes()[:-20])
    await bench.arrive(path, inbound)
    assert offered == [str(path)]


# --- what was not -----------------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_nobody_asked(bench: Bench, inbound: Inbound) -> None:
    """Without an endpoint it goes to quarantine, and its association is told that the file is done with."""
    bench.expect(study_instance_uid=STUDY_2)
    path = await bench.arrive(bench.file(STUDY_1), inbound)
    assert bench.reasons == [f"arrived at DEST {UNASKED}"]
    assert inbound.given_back == [path]
    assert not path.exists()


@pytest_twisted.ensureDeferred
async def test_nobody_asked_but_there_is_an_endpoint(bench: Bench, inbound: Inbound) -> None:
    """What no move wants is the endpoint's, and what a move wants is not."""
    endpoint = Endpoint()
    _, offered = bench.expect(study_instance_uid=STUDY_1)
    wanted = await bench.arrive(bench.file(STUDY_1), inbound, endpoint)
    other = await bench.arrive(bench.file(STUDY_2), inbound, endpoint)
    assert (offered, endpoint.files) == ([str(wanted)], [other])
    assert bench.reasons == []
    assert inbound.given_back == []


@pytest.mark.parametrize("content", [b"", b"nonsense" * 100])
@pytest_twisted.ensureDeferred
async def test_what_is_no_object(bench: Bench, inbound: Inbound, content: bytes) -> None:
    """A file that does not even say what it is goes to quarantine as damaged, or to the endpoint, which judges it."""
    bench.expect(study_instance_uid=STUDY_1)
    path = bench.folder / "broken"
    path.write_bytes(content)
    await bench.arrive(path, inbound)
    (reason,) = bench.reasons
    assert reason.startswith("damaged: ")
    path.write_bytes(content)
    endpoint = Endpoint()
    await bench.arrive(path, inbound, endpoint)
    assert endpoint.files == [path]


@pytest_twisted.ensureDeferred
async def test_a_file_that_is_gone(bench: Bench, inbound: Inbound) -> None:
    """One that somebody removed is done with."""
    path = await bench.arrive(bench.folder / "gone", inbound)
    assert inbound.given_back == [path]
    assert bench.reasons == []


@pytest_twisted.ensureDeferred
async def test_too_much_that_nobody_asked_for(bench: Bench) -> None:
    """When the quarantine is full, the association that filled it is ended, and no other let in until a move runs."""
    inbound = Inbound()
    bench.left_bytes = bench.file(STUDY_1).stat().st_size + 1
    await bench.arrive(bench.file(STUDY_1), inbound)
    assert not inbound.was_stopped
    assert bench.deliveries.admit(REQUEST, "127.0.0.1") is bench.deliveries
    await bench.arrive(bench.file(STUDY_1), inbound)
    assert inbound.was_stopped
    assert len(bench.reasons) == 2
    assert bench.deliveries.admit(REQUEST, "127.0.0.1") is Rejection.TEMPORARY_CONGESTION
    expectation, _ = bench.expect(study_instance_uid=STUDY_1)
    assert bench.deliveries.admit(REQUEST, "127.0.0.1") is bench.deliveries
    await bench.deliveries.forget(expectation)
    assert bench.deliveries.admit(REQUEST, "127.0.0.1") is Rejection.TEMPORARY_CONGESTION


# --- who is let in ----------------------------------------------------------------------------------------------------


def test_as_many_associations_as_may(bench: Bench) -> None:
    """One more than the limit is refused for now."""
    bench.expect(study_instance_uid=STUDY_1)
    bench.listener.number = MAX_ASSOCIATIONS - 1
    assert bench.deliveries.admit(REQUEST, "127.0.0.1") is bench.deliveries
    bench.listener.number = MAX_ASSOCIATIONS
    assert bench.deliveries.admit(REQUEST, "127.0.0.1") is Rejection.LOCAL_LIMIT_EXCEEDED


@pytest_twisted.ensureDeferred
async def test_whom_a_move_expects(bench: Bench) -> None:
    """Associations of its PACS, while it runs; nobody else's."""
    assert not bench.deliveries.expects_from("PACS")
    expectation, _ = bench.expect(study_instance_uid=STUDY_1)
    assert bench.deliveries.expects_from("PACS") and not bench.deliveries.expects_from("MODALITY")
    await bench.deliveries.forget(expectation)
    assert not bench.deliveries.expects_from("PACS")


# --- beside an endpoint -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("calling", "originator", "is_moved"),
    [
        ("PACS", "", True),
        ("PACS", "HARMONY_SCU", True),
        ("STORE_OF_PACS", "HARMONY_SCU", True),
        ("MODALITY", "", False),
        ("PACS", "WORKSTATION", False),
    ],
)
@pytest_twisted.ensureDeferred
async def test_an_object_of_a_study_that_is_moved(bench: Bench, calling: str, originator: str, is_moved: bool) -> None:
    """It is the move's when it says so, or comes from the PACS; a modality that sends more of it feeds the endpoint."""
    endpoint, inbound = Endpoint(), Inbound(calling, originator)
    _, offered = bench.expect(study_instance_uid=STUDY_1)
    path = await bench.arrive(bench.file(STUDY_1), inbound, endpoint)
    assert (offered, endpoint.files) == (([str(path)], []) if is_moved else ([], [path]))


@pytest_twisted.ensureDeferred
async def test_a_file_that_cannot_be_read_now(bench: Bench, inbound: Inbound) -> None:
    """It is the endpoint's, which tries again."""
    endpoint = Endpoint()
    bench.expect(study_instance_uid=STUDY_1)
    path = bench.folder / "loop"
    path.symlink_to(path)
    await bench.arrive(path, inbound, endpoint)
    assert endpoint.files == [path]


@pytest_twisted.ensureDeferred
async def test_given_back_by_its_move(bench: Bench, inbound: Inbound) -> None:
    """What a cancelled move was offered and has not taken is the endpoint's; until then it is nobody else's."""
    endpoint = Endpoint()
    expectation, _ = bench.expect(study_instance_uid=STUDY_1)
    path = await bench.arrive(bench.file(STUDY_1), inbound, endpoint)
    assert bench.deliveries.holds(path)
    assert endpoint.files == []
    await bench.deliveries.forget(expectation)
    assert not bench.deliveries.holds(path)
    assert endpoint.files == [path]
    assert bench.reasons == []


# --- the end of a move ------------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_taken_by_its_move(bench: Bench, inbound: Inbound) -> None:
    """What a move has taken is done with, and not touched when the move ends."""
    expectation, _ = bench.expect(study_instance_uid=STUDY_1)
    path = await bench.arrive(bench.file(STUDY_1), inbound)
    bench.deliveries.taken(expectation, str(path))
    await bench.deliveries.forget(expectation)
    assert inbound.given_back == [path]
    assert path.exists()
    assert bench.reasons == []


@pytest_twisted.ensureDeferred
async def test_not_taken_by_its_move(bench: Bench, inbound: Inbound) -> None:
    """What a cancelled move was offered and has not taken is in quarantine when its turn ends."""
    expectation, _ = bench.expect(study_instance_uid=STUDY_1)
    path = await bench.arrive(bench.file(STUDY_1), inbound)
    await bench.deliveries.forget(expectation)
    assert bench.reasons == ["its C-MOVE ended before it was taken"]
    assert inbound.given_back == [path]
    assert not list(bench.folder.iterdir())


@pytest_twisted.ensureDeferred
async def test_taken_while_its_move_ends(bench: Bench, inbound: Inbound) -> None:
    """A file that is gone by then was just being taken: it is done with."""
    expectation, _ = bench.expect(study_instance_uid=STUDY_1)
    path = await bench.arrive(bench.file(STUDY_1), inbound)
    path.unlink()
    await bench.deliveries.forget(expectation)
    assert inbound.given_back == [path]
    assert bench.reasons == []


@pytest_twisted.ensureDeferred
async def test_late_for_its_move(bench: Bench, inbound: Inbound) -> None:
    """What comes after the end of the move that asked for it is nobody's."""
    expectation, offered = bench.expect(study_instance_uid=STUDY_1)
    await bench.deliveries.forget(expectation)
    await bench.arrive(bench.file(STUDY_1), inbound)
    assert offered == []
    assert bench.reasons == [f"arrived at DEST {UNASKED}"]


@pytest_twisted.ensureDeferred
async def test_settling_takes_in_what_is_closed_by_now(bench: Bench, inbound: Inbound) -> None:
    """It asks each association for what the kernel has not told, and does not wait for what is closed later."""
    _, offered = bench.expect(study_instance_uid=STUDY_1)
    inbound.owner = bench.deliveries
    inbound.unseen = [bench.file(STUDY_1)]
    bench.listener.associations.add(inbound)
    settled = Deferred.fromCoroutine(bench.deliveries.settle())
    blocked: Deferred[None] = Deferred()
    sort = bench.deliveries._sort

    async def never(association: Any, path: Path, host: Any) -> None:
        await blocked

    bench.deliveries._sort = never  # type: ignore[method-assign]
    bench.deliveries.file_closed(inbound, bench.file(STUDY_1))  # type: ignore[arg-type]
    await settled
    assert len(offered) == 1
    bench.deliveries._sort = sort  # type: ignore[method-assign]
    blocked.callback(None)
