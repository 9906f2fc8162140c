"""Who gets what from where: the disk, a retrieve that runs, or the PACS."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cache_fakes import SERIES, FakePacs, names, one
from twisted.internet.defer import Deferred

from harmonyd.cache import cache as module
from harmonyd.cache.entry import Entry
from harmonyd.cache.key import Key
from harmonyd.config.daemon import CacheConfig
from harmonyd.errors import HarmonydError, NotFound, StorageFull, Unavailable

CONFIG = CacheConfig(min_free_bytes=1)
OTHER = Key("pacs", "1.2", "1.2.4")
THIRD = Key("pacs", "1.5", "1.5.1")


@pytest.fixture
def pacs(tmp_path: Path) -> FakePacs:
    return FakePacs(tmp_path)


def folders(pacs: FakePacs) -> list[Path]:
    return [path for path in (pacs.folder / "cache").iterdir() if path.is_dir()]


def test_all_share_one_retrieve(pacs: FakePacs) -> None:
    """Who comes first, in the middle, and after the end."""
    first = pacs.ask()
    pacs.asked[0].bring(1)
    second = pacs.ask()
    readers = [Deferred.fromCoroutine(names(pacs.done(each))) for each in (first, second)]
    pacs.asked[0].bring(2)
    pacs.asked[0].finish()
    third = Deferred.fromCoroutine(names(pacs.done(pacs.ask())))
    for reader in (*readers, third):
        assert pacs.done(reader) == ["1.2.3.1", "1.2.3.2"]
    assert len(pacs.asked) == 1
    assert pacs.asked[0].is_closed
    assert pacs.cache.answers == {"retrieved": 1, "joined": 1, "kept": 1, "passed_by": 0}


def test_all_are_told_what_went_wrong(pacs: FakePacs) -> None:
    """Before the first instance it is the answer; the next request asks anew."""
    waiting = [pacs.ask(), pacs.ask()]
    pacs.asked[0].finish(NotFound("no such series"))
    for each in waiting:
        with pytest.raises(NotFound):
            pacs.done(each)
    pacs.ask()
    assert len(pacs.asked) == 2


def test_what_fails_under_way_fails_for_its_readers(pacs: FakePacs) -> None:
    """They have what came before; nothing is kept."""
    asked = pacs.ask()
    pacs.asked[0].bring(1)
    results = pacs.done(asked)
    pacs.asked[0].finish(HarmonydError("the PACS went away"))
    with pytest.raises(HarmonydError, match="went away"):
        pacs.done(names(results))
    assert results.summary()["incomplete_reason"] == "the PACS went away"
    pacs.done(results.aclose())
    assert folders(pacs) == []


def test_what_is_not_complete_is_told_and_not_kept(pacs: FakePacs) -> None:
    """The summary is that of the operation."""
    asked = pacs.ask()
    pacs.asked[0].bring(1)
    pacs.asked[0].finish(complete=False)
    results = pacs.done(asked)
    assert pacs.done(results.whole()) is None
    assert pacs.done(names(results)) == ["1.2.3.1"]
    assert (results.summary()["complete"], results.summary()["file_count"]) == (False, 1)
    pacs.done(results.aclose())
    assert folders(pacs) == []


def test_files_stay_while_somebody_reads(pacs: FakePacs) -> None:
    """Emptied in the middle: the reader gets the rest, and then the files go."""
    pacs.kept()
    results = pacs.done(pacs.ask())
    pacs.done(pacs.cache.clear())
    assert pacs.cache.figures()["entries"] == 0
    for instance in results.chosen:
        assert instance.path.exists()
    pacs.done(results.aclose())
    pacs.done(results.aclose())
    assert (folders(pacs), pacs.cache.figures()["bytes"]) == ([], 0)


def test_a_reader_that_leaves_when_it_is_told_of_an_instance(tmp_path: Path) -> None:
    """It is the last, and ends the retrieve while that is telling it."""
    pacs = FakePacs(tmp_path, replace(CONFIG, max_prefetches=0))
    asked = pacs.ask()
    asked.addCallback(lambda results: Deferred.fromCoroutine(results.aclose()))
    pacs.asked[0].bring(1)
    assert pacs.done(asked) is None
    assert pacs.asked[0].is_closed
    assert folders(pacs) == []


def test_who_is_cancelled_while_waiting_leaves(tmp_path: Path) -> None:
    """Nobody else waits, so the retrieve ends, and what had arrived goes."""
    pacs = FakePacs(tmp_path, replace(CONFIG, max_prefetches=0))
    asked = pacs.ask()
    asked.addErrback(lambda _: None)
    asked.cancel()
    assert pacs.asked[0].is_closed
    assert pacs.cache.figures()["retrieving"] == 0


# --- ahead


def test_an_instance_brings_its_series(pacs: FakePacs) -> None:
    """It comes first; the series is asked for when it is there."""
    asked = pacs.ask(one(7))
    assert pacs.levels == ["IMAGE"]
    pacs.asked[0].bring(7)
    pacs.asked[0].finish()
    results = pacs.done(asked)
    assert pacs.done(names(results)) == ["1.2.3.7"]
    assert pacs.levels == ["IMAGE", "SERIES"]
    pacs.asked[1].bring(6)
    assert pacs.done(names(pacs.done(pacs.ask(one(6))))) == ["1.2.3.6"]
    pacs.asked[1].bring(7)
    pacs.asked[1].finish()
    pacs.done(results.aclose())
    assert pacs.done(names(pacs.done(pacs.ask(one(7))))) == ["1.2.3.7"]
    assert len(pacs.asked) == 2
    assert pacs.cache.figures()["entries"] == 1, "the instance alone has gone"


def test_so_many_series_come_ahead(pacs: FakePacs) -> None:
    """Above max_prefetches none is begun, and one that loses its last reader is ended."""
    for series in (SERIES, OTHER, THIRD):
        asked = pacs.ask(one(1, series))
        image = pacs.asked[-1]
        image.bring(1)
        image.finish()
        pacs.done(pacs.done(asked).aclose())
    assert pacs.levels == ["IMAGE", "SERIES", "IMAGE", "SERIES", "IMAGE"]
    asked = pacs.ask(THIRD)
    pacs.asked[-1].bring(1)
    pacs.done(pacs.done(asked).aclose())
    assert pacs.asked[-1].is_closed
    assert not pacs.asked[1].is_closed


def test_a_series_that_is_too_big_does_not_come_ahead(tmp_path: Path) -> None:
    """It is ended when that shows, and not begun again with the next frame."""
    pacs = FakePacs(tmp_path, replace(CONFIG, max_series_bytes=100))
    pacs.kept(one(1), 1)
    pacs.done(pacs.ask(one(1)))
    pacs.asked[1].bring(2, size=101)
    assert pacs.asked[1].is_closed
    pacs.done(pacs.ask(one(1)))
    assert pacs.levels == ["IMAGE", "SERIES"]


def test_who_reads_gets_all_of_what_is_too_big_to_keep(tmp_path: Path) -> None:
    """Only the next one has to ask the PACS."""
    pacs = FakePacs(tmp_path, replace(CONFIG, max_series_bytes=100))
    asked = pacs.ask()
    pacs.asked[0].bring(1, 2, size=80)
    pacs.asked[0].finish()
    results = pacs.done(asked)
    assert pacs.done(names(results)) == ["1.2.3.1", "1.2.3.2"]
    pacs.done(results.aclose())
    assert folders(pacs) == []


def test_an_instance_waits_for_its_series_only_for_a_while(pacs: FakePacs) -> None:
    """Then it is asked for by itself, a few at once; who waits longer gets it from whoever brings it."""
    pacs.ask()
    waiting = [pacs.ask(one(number)) for number in range(1, module.MAX_ALONE + 3)]
    assert pacs.levels == ["SERIES"]
    pacs.clock.pump([0.1] * 10)
    assert pacs.levels == ["SERIES"] + ["IMAGE"] * module.MAX_ALONE
    last = waiting[-1]
    pacs.asked[0].bring(module.MAX_ALONE + 2)
    assert pacs.done(names(pacs.done(last))) == [one(module.MAX_ALONE + 2).instance]
    for each in waiting[:-1]:
        each.addErrback(lambda _: None)
        each.cancel()
    pacs.done(pacs.cache.stop())


# --- freshness


def test_what_is_stored_meanwhile_counts(pacs: FakePacs) -> None:
    """A retrieve that runs is not kept, and who comes after the store does not join it."""
    before = pacs.ask()
    pacs.asked[0].bring(1)
    pacs.cache.invalidate({"1.2"})
    after = pacs.ask()
    for retrieve in pacs.asked:
        retrieve.bring(2)
        retrieve.finish()
    assert pacs.done(names(pacs.done(before))) == ["1.2.3.1", "1.2.3.2"]
    assert pacs.done(names(pacs.done(after))) == ["1.2.3.2"]
    assert pacs.done(names(pacs.done(pacs.ask()))) == ["1.2.3.2"]
    assert len(pacs.asked) == 2


def test_a_study_holds_its_parts(pacs: FakePacs) -> None:
    """When it was retrieved, what was kept of it before goes."""
    pacs.kept(SERIES, 1)
    study = Key("pacs", "1.2")
    asked = pacs.ask(study)
    pacs.asked[1].bring(1, 2)
    pacs.asked[1].finish()
    pacs.done(pacs.done(asked).aclose())
    assert pacs.cache.figures()["entries"] == 1
    assert pacs.ask(OTHER).called is False, "the study has none of that series"


@pytest.mark.parametrize(("age", "asks"), [(0.0, 1), (module.SETTLED_SECS + 1, 2)])
def test_a_client_that_wants_nothing_from_a_cache(pacs: FakePacs, age: float, asks: int) -> None:
    """What is only just there is current enough for it."""
    pacs.kept()
    pacs.clock.advance(age)
    pacs.ask(fresh=True)
    assert len(pacs.asked) == asks


def test_what_is_too_old_goes(pacs: FakePacs) -> None:
    """With a look, or without."""
    pacs.kept()
    pacs.clock.advance(CONFIG.max_age_secs + 1)
    pacs.cache.sweep()
    assert (folders(pacs), pacs.cache.figures()["entries"]) == ([], 0)


def test_another_address_is_another_pacs(pacs: FakePacs) -> None:
    """Keys have the node."""
    pacs.kept()
    pacs.ask(SERIES._replace(node="elsewhere"))
    assert len(pacs.asked) == 2


# --- the disk


def test_a_full_disk_gets_all_that_is_kept(pacs: FakePacs, caplog_twisted: list[str]) -> None:
    """It is said once, and what is asked for later is tried again."""
    pacs.kept(OTHER)
    asked = pacs.ask()
    pacs.asked[-1].finish(StorageFull("the disk is full"))
    with pytest.raises(StorageFull):
        pacs.done(asked)
    assert folders(pacs) == []
    assert len(caplog_twisted) == 1


def test_it_gives_way(pacs: FakePacs) -> None:
    """What is not read makes room for others; what is read goes when it has been."""
    assert not pacs.done(pacs.cache.give_way())
    pacs.kept()
    pacs.kept(OTHER)
    reader = pacs.done(pacs.ask())
    assert pacs.done(pacs.cache.give_way())
    assert (len(folders(pacs)), pacs.done(names(reader))) == (2, ["1.2.3.1", "1.2.3.2"])
    assert not pacs.done(pacs.cache.give_way())
    pacs.done(reader.aclose())
    assert folders(pacs) == []


def test_without_a_manifest_it_is_not_kept(
    pacs: FakePacs, monkeypatch: pytest.MonkeyPatch, caplog_twisted: list[str]
) -> None:
    """Who has asked gets it all the same."""

    def full(_entry: Entry) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Entry, "write_manifest", full)
    pacs.kept()
    assert folders(pacs) == []
    assert len(caplog_twisted) == 1


def test_a_start_takes_over_what_is_whole(pacs: FakePacs) -> None:
    """And only that: not what was under way, nor with a file that is shorter, nor from before the machine started."""
    for series, number in ((SERIES, 1), (OTHER, 2), (THIRD, 3)):
        pacs.kept(series, number)
    pacs.ask(Key("pacs", "1.7"))
    pacs.asked[-1].bring(1)
    short, booted = pacs.asked[1].folder, pacs.asked[2].folder
    assert short is not None
    assert booted is not None
    (short / "1.2.4.2").write_bytes(b"")
    manifest = booted.with_name(f"{booted.name}.kept") / "entry.json"
    manifest.write_text(manifest.read_text().replace('"boot": "', '"boot": "0'))
    stray = pacs.asked[0].folder / "left.transcoded"  # type: ignore[operator]
    stray.write_bytes(b"x")
    bystander = pacs.folder / "cache" / "notes.txt"
    bystander.write_text("not ours")
    asked = len(pacs.asked)
    pacs.cache = pacs.started(CONFIG)
    assert pacs.done(names(pacs.done(pacs.ask()))) == ["1.2.3.1"]
    for series in (OTHER, THIRD):
        pacs.ask(series)
    assert len(pacs.asked) == asked + 2
    assert not stray.exists()
    assert bystander.exists()


def test_a_start_without_a_cache_empties_it(pacs: FakePacs) -> None:
    """Switched off means that nothing is there."""
    pacs.kept()
    pacs.started(replace(CONFIG, enabled=False))
    assert folders(pacs) == []


def test_switched_off_while_it_runs(pacs: FakePacs) -> None:
    """A reload empties it, and each request asks the PACS."""
    pacs.kept()
    pacs.cache.configure(replace(CONFIG, enabled=False))
    assert folders(pacs) == []
    pacs.done(pacs.ask())
    pacs.done(pacs.ask())
    assert [retrieve.folder for retrieve in pacs.asked[1:]] == [None, None]


def test_the_end_ends_what_runs(pacs: FakePacs) -> None:
    """Who waits is told, and nothing half is left."""
    asked: Any = pacs.ask()
    pacs.done(pacs.cache.stop())
    with pytest.raises(Unavailable):
        pacs.done(asked)
    assert pacs.asked[0].is_closed
    assert folders(pacs) == []
