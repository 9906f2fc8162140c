"""What Storage Commitment has on the disk, and what it says of reports."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from harmonyd.commitment import ledger as ledgers
from harmonyd.commitment.api import NOT_REPORTED, Demand, Forwarded, ForwardState, Place, Reference, Report
from harmonyd.commitment.ledger import Conflict, Full, Ledger, LedgerUnusable

ONE, TWO = Reference("1.2.3", "1.1"), Reference("1.2.3", "1.2")
NEW = Demand(0, "scp", "CT1", "HARMONY", "9.1", 100.0, (ONE, TWO), (ONE, TWO), ("pacs",))


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    made = Ledger(tmp_path / "ledger")
    yield made
    made.close()


def test_a_demand_is_there_until_it_is_reported(ledger: Ledger, tmp_path: Path) -> None:
    """Another process finds it, with what was decided; reported, it is not open any more."""
    demand = ledger.demand(NEW)
    ledger.decided(demand.id, {"1.2": 0x0112})
    ledger.tried(demand.id)
    other = Ledger(tmp_path / "ledger")
    assert other.demands("scp") == [replace(NEW, id=demand.id, reasons={"1.2": 0x0112}, attempts=1)]
    assert other.demands("other") == []
    other.close()
    ledger.reported(demand.id, 200.0, 0.0)
    assert ledger.demands("scp") == []


def test_the_same_demand_again(ledger: Ledger) -> None:
    """While it is open it is that one; after its report it is looked into anew; another of its UID is none."""
    first = ledger.demand(NEW)
    assert ledger.demand(NEW).id == first.id
    with pytest.raises(Conflict):
        ledger.demand(replace(NEW, references=(ONE,), sought=(ONE,)))
    ledger.decided(first.id, {})
    ledger.reported(first.id, 200.0, 0.0)
    assert ledger.demand(replace(NEW, received_at=300.0)).reasons is None
    assert ledger.demand(replace(NEW, aet="CT2", references=(ONE,), sought=(ONE,))).aet == "CT2"


def test_reported_ones_are_forgotten_in_time(ledger: Ledger) -> None:
    """Then their UID is free."""
    first = ledger.demand(NEW)
    ledger.reported(first.id, 200.0, 0.0)
    second = ledger.demand(replace(NEW, transaction_uid="9.2"))
    ledger.reported(second.id, 900.0, 500.0)
    ledger.demand(replace(NEW, references=(ONE,), sought=(ONE,)))


def test_there_is_a_limit(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of open ones."""
    monkeypatch.setattr(ledgers, "MAX_DEMANDS", 1)
    ledger.demand(NEW)
    with pytest.raises(Full):
        ledger.demand(replace(NEW, transaction_uid="9.2"))


def test_places(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """By endpoint; the oldest go first, by age and by number."""
    at = Place("1.2.3", "2.1", "3.1")
    ledger.place("scp", {"1.1": at, "1.2": at}, 100.0)
    ledger.place("scp", {"1.3": at}, 200.0)
    assert ledger.places("scp", ["1.1", "1.9"]) == {"1.1": at}
    assert ledger.places("other", ["1.1"]) == {}
    monkeypatch.setattr(ledgers, "MAX_PLACES", 1)
    ledger.trim_places(0.0)
    assert set(ledger.places("scp", ["1.1", "1.2", "1.3"])) == {"1.3"}
    ledger.trim_places(201.0)
    assert ledger.places("scp", ["1.3"]) == {}


def test_what_was_forwarded(ledger: Ledger) -> None:
    """It goes from state to state, and is found by each."""
    items = [Forwarded(1, ONE, since=10.0), Forwarded(2, TWO, since=11.0, released=True)]
    ledger.stored("scp", "pacs", items)
    assert ledger.forwarded("scp", "pacs", [1, 2, 3]) == {1: items[0], 2: items[1]}
    assert ledger.in_state("scp", "pacs", ForwardState.STORED, 1) == items[:1]
    asked = replace(items[0], state=ForwardState.ASKED, transaction_uid="9.1", tries=1, since=20.0, reason="r")
    ledger.change("scp", "pacs", [asked])
    assert ledger.in_state("scp", "pacs", ForwardState.ASKED, 10) == [asked]
    assert (ledger.backends_of("scp"), ledger.backends_of("other")) == (["pacs"], [])
    ledger.forget("scp", "pacs", [1])
    ledger.forget_old("scp", 12.0)
    assert ledger.forwarded("scp", "pacs", [1, 2]) == {}


def test_a_file_that_is_none(tmp_path: Path) -> None:
    """And one of a newer version are refused."""
    (tmp_path / "text").write_text("this is no database, and long enough to be seen as none" * 20)
    with pytest.raises(LedgerUnusable):
        Ledger(tmp_path / "text")
    newer = Ledger(tmp_path / "newer")
    newer.db.execute("PRAGMA user_version = 99")
    newer.close()
    with pytest.raises(LedgerUnusable, match="newer"):
        Ledger(tmp_path / "newer")


def test_what_a_report_says_of_an_object() -> None:
    """Failed wins over committed, and silence is a failure."""
    report = Report("9.1", (ONE, TWO), {TWO: 0x0112})
    assert report.reason(ONE) == ""
    assert report.reason(TWO) == "0x0112: no such object instance"
    assert report.reason(Reference("1.2.3", "1.3")) == NOT_REPORTED
