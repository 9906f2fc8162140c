"""C-MOVE from a PACS that does not do what it should: scripted peers, movescu and storescp, in every receiving mode."""

from __future__ import annotations

from collections.abc import Iterator
from http.client import IncompleteRead
from pathlib import Path

import pytest
from misbehaving import STUDY_UID, Stage, stage
from retrieve_kit import (
    DICOM,
    MULTIPART,
    NATIVE,
    ZIP,
    by_study,
    quarantined,
    wait_idle,
    wait_nothing_incoming,
)

from harmonyd.testing.daemon import RunningDaemon
from harmonyd.testing.processes import wait_until

SCRIPTS = {
    "good": {"count": 4},
    "half-fails": {"count": 6, "failed": 3},
    "fewer": {"count": 5, "withheld": 2},
    "none": {"count": 3, "withheld": 3},
    "no-counters": {"count": 3, "counters": False, "originator": False},
    "twice": {"duplicate": True},
    "strangers": {"extra": 2},
    "late": {"count": 4, "late": 2, "late_secs": 4.0 if NATIVE else 0.5},
    "breaks-off": {"broken": "abort"},
    "short": {"broken": "short"},
    "abort": {"count": 5, "after": 2, "then": "abort"},
    "drop": {"count": 5, "after": 2, "then": "drop"},
}


@pytest.fixture(scope="module")
def wrong(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A daemon with a peer for each script; ``transient-<script>`` is the same peer by ``movescu +P``.

    ``own-<script>`` is the same peer by a port of our own.
    """
    scripts = {name: ("serve", given) for name, given in SCRIPTS.items()}
    modes = {"transient": "transient", "own": "per-association"}
    backends = {f"{kind}-{name}": {"peer": name, "store_scp": modes[kind]} for kind in modes for name in SCRIPTS}
    with stage(tmp_path_factory.mktemp("wrong"), scripts, backends, {"association_timeout_ms": 20_000}) as running:
        yield running


def _kinds(*kinds: str) -> pytest.MarkDecorator:
    """The usual mode, and others; the native engine has one way to receive."""
    return pytest.mark.parametrize("kind", ["", *(pytest.param(kind, marks=pytest.mark.dcmtk) for kind in kinds)])


KINDS = _kinds("transient-", "own-")
OWN_PORT_TOO = _kinds("own-")


def new_in_quarantine(daemon: RunningDaemon, before: dict[Path, str], count: int) -> dict[Path, str]:
    """What has come to the quarantine since; waits for as many as there have to be."""
    wait_until(lambda: len(quarantined(daemon)) == len(before) + count, f"{count} more in quarantine")
    return {path: reason for path, reason in quarantined(daemon).items() if path not in before}


@KINDS
def test_half_of_it_fails(wrong: Stage, kind: str) -> None:
    """B000 with failed sub-operations is told as incomplete; what cannot say so is cut."""
    told = wrong.ask("move", f"{kind}half-fails").json()
    assert told["complete"] is False
    assert "3 failed" in told["incomplete_reason"]
    assert told["file_count"] == 3
    assert told["suboperations"]["failed"] == 3
    with pytest.raises(IncompleteRead):
        wrong.ask("move", f"{kind}half-fails", Accept=ZIP if kind else MULTIPART)


@KINDS
def test_fewer_than_counted(wrong: Stage, kind: str) -> None:
    """Instances that the PACS counts, and did not deliver, are missing: told, not believed."""
    told = wrong.ask("move", f"{kind}fewer").json()
    assert told["complete"] is False
    assert "5 instances delivered, 3 arrived" in told["incomplete_reason"]
    assert told["file_count"] == 3


@OWN_PORT_TOO
def test_counted_but_none_delivered(wrong: Stage, kind: str) -> None:
    """When the PACS says it delivered, and nothing came, that is a 502 and not a 404."""
    answer = wrong.ask("move", f"{kind}none")
    assert answer.status == 502
    assert "3 instances delivered, 0 arrived" in answer.json()["detail"]
    assert answer.json()["suboperations"]["completed"] == 3


@OWN_PORT_TOO
def test_counters_left_out(wrong: Stage, kind: str) -> None:
    """Without counters, and without a Move Originator, a success with instances is taken for complete."""
    told = wrong.ask("move", f"{kind}no-counters").json()
    assert (told["complete"], told["file_count"]) == (True, 3)
    assert "suboperations" not in told


@OWN_PORT_TOO
def test_the_same_instance_twice(wrong: Stage, kind: str) -> None:
    """A second copy of an instance goes to quarantine with a note, and a warning says so."""
    before = quarantined(wrong.daemon)
    told = wrong.ask("move", f"{kind}twice").json()
    assert (told["complete"], told["file_count"]) == (True, 3)
    assert told["warnings"] == ["3 received files put in quarantine: the same SOP Instance UID arrived twice"]
    new = new_in_quarantine(wrong.daemon, before, 3)
    assert set(new.values()) == {"the same SOP Instance UID arrived twice"}
    wait_nothing_incoming(wrong.daemon)


@_kinds("transient-")
def test_strangers_are_put_aside(wrong: Stage, kind: str) -> None:
    """Instances nobody asked for are kept in quarantine, whole, and reported, never mixed in."""
    reason = "arrived at HARMONY_SCU while no C-MOVE was under way that could have asked for it"
    before = quarantined(wrong.daemon)
    told = wrong.ask("move", f"{kind}strangers").json()
    assert told["file_count"] == 3
    assert {item["0020000D"]["Value"][0] for item in told["instances"]} == {STUDY_UID}
    assert told["warnings"] == ["2 received files put in quarantine: not asked for"]
    new = new_in_quarantine(wrong.daemon, before, 2)
    assert set(new.values()) == {reason if NATIVE else "not asked for"}
    (found,) = by_study(new).values()
    assert len(found) == 2


@OWN_PORT_TOO
def test_delivered_late(wrong: Stage, kind: str) -> None:
    """What comes after the final response is missing in the answer and kept in quarantine; the next move is whole.

    The native engine waits for it a little (two seconds) first.
    """
    before = quarantined(wrong.daemon)
    told = wrong.ask("move", f"{kind}late").json()
    assert told["complete"] is False
    assert "4 instances delivered, 2 arrived" in told["incomplete_reason"]
    new = new_in_quarantine(wrong.daemon, before, 2)
    assert all("no C-MOVE was under way" in reason for reason in new.values())
    wait_until(lambda: all(path.name in wrong.daemon.log for path in new), "the log names what is in quarantine")
    assert wrong.ask("move", f"{kind}good").json()["complete"] is True
    wait_nothing_incoming(wrong.daemon)


@KINDS
def test_a_delivery_that_breaks_off(wrong: Stage, kind: str) -> None:
    """An instance that breaks off on its way, though the PACS counts it, is missing, and the answer says so."""
    told = wrong.ask("move", f"{kind}breaks-off").json()
    assert (told["complete"], told["file_count"]) == (False, 2)
    assert "3 instances delivered, 2 arrived" in told["incomplete_reason"]
    if not kind:
        with pytest.raises(IncompleteRead):
            wrong.ask("move", "breaks-off", Accept=MULTIPART)


@OWN_PORT_TOO
def test_a_delivery_that_is_half(wrong: Stage, kind: str) -> None:
    """Half a data set that is delivered as if it were whole ends in quarantine, and the answer is not complete.

    By the native engine it is refused, so that the PACS knows that it has not delivered it: then it keeps nothing.
    """
    before = quarantined(wrong.daemon)
    told = wrong.ask("move", f"{kind}short").json()
    assert (told["complete"], told["file_count"]) == (False, 2)
    # Deflated, it does not even say which move it is for, where that is looked for.
    missed = "3 instances delivered, 2 arrived"
    expected = missed if kind or NATIVE else "1 received files were damaged and are in quarantine"
    assert expected in told["incomplete_reason"]
    if NATIVE:
        assert quarantined(wrong.daemon) == before
        return
    (reason,) = new_in_quarantine(wrong.daemon, before, 1).values()
    assert reason.startswith("damaged: ")


@pytest.mark.parametrize("backend", ["abort", "drop", "transient-abort", "own-abort", "own-drop"])
def test_the_pacs_breaks_off(wrong: Stage, backend: str) -> None:
    """What arrived before an abort is in the answer, which says why there is no more."""
    told = wrong.ask("move", backend).json()
    assert (told["success"], told["complete"]) == (False, False)
    assert "aborted" in told["incomplete_reason"]
    assert told["file_count"] == 2


@KINDS
def test_more_than_one_as_a_single_object(wrong: Stage, kind: str) -> None:
    """Two or more do not fit application/dicom: 406, and the move is over."""
    answer = wrong.ask("move", f"{kind}good", Accept=DICOM)
    assert answer.status == 406
    wait_idle(wrong.daemon)
    wait_nothing_incoming(wrong.daemon)
