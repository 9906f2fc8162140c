"""Any sequence of takes, refusals, absences, restarts and retries: nothing is lost, and a study stays in order."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pytest_twisted import ensureDeferred
from spool_kit import CONFIG, ENDPOINT, ClockReactor, Pacs, away, refuse, take

from harmonyd.spool.api import Delivered, EntryState
from harmonyd.spool.spool import DurableSpool

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("take"), st.integers(1, 3), st.sampled_from(["A", "B", ""])),
        st.tuples(st.sampled_from(["away", "refuse", "well", "restart", "minute", "retry"])),
    ),
    max_size=12,
)


async def play(reactor, folder: Path, steps, in_order: bool) -> None:
    clock = ClockReactor(reactor)
    pacs, studies, number = Pacs(batch=2), {}, 0
    moods = {
        "away": away,
        "well": refuse(),
        "refuse": lambda backend, entry: refuse(*[uid for uid in studies if int(uid) % 3 == 0])(backend, entry),
    }

    async def begin() -> DurableSpool:
        spool = DurableSpool(clock, folder / "storage", CONFIG, random=lambda: 0.5)
        await spool.start()
        spool.attach(ENDPOINT, pacs, in_order=in_order)
        return spool

    spool = await begin()
    try:
        for step, *details in steps:
            if step == "take":
                count, study = details
                uids = [str(number + part) for part in range(count)]
                number += count
                studies.update(dict.fromkeys(uids, study))
                await take(spool, folder / "in", *uids, study=study)
            elif step in moods:
                pacs.answer = moods[step]
            elif step == "restart":
                await spool.stop()
                spool = await begin()
            elif step == "minute":
                clock.advance(60)
            else:
                await spool.retry()
        pacs.answer = lambda backend, entry: Delivered()
        await spool.retry()
        await spool.emptied(ENDPOINT)
        assert await spool.entries(state=EntryState.DAMAGED) == []
    finally:
        await spool.stop()
    assert sorted(set(pacs.uids()), key=int) == [str(n) for n in range(number)]
    if in_order:
        for study in ("A", "B"):
            came = list(dict.fromkeys(int(uid) for uid in pacs.uids() if studies[uid] == study))
            assert came == sorted(came)


@pytest.mark.deadline(240)
@settings(max_examples=30, deadline=None)
@given(steps=STEPS, in_order=st.booleans())
@ensureDeferred
async def test_any_sequence(started_reactor, steps, in_order):
    """Whatever happens in between, in the end each object has been delivered; in order where that was asked for."""
    with tempfile.TemporaryDirectory() as folder:
        await play(started_reactor, Path(folder), steps, in_order)
