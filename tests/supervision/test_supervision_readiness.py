"""Busy is not hung: what readings mean."""

from __future__ import annotations

import os
import socket

from harmonyd.supervision.ports import open_sockets
from harmonyd.supervision.readiness import Movement, Reading, Verdict, judge


def test_only_an_echo_can_tell_of_an_idle_child() -> None:
    """Without a connection, and not stopped, a reading says nothing."""
    assert judge(Reading(stopped=False, connections=0, cpu_ticks=0), 1e9, 300) is None


def test_a_child_with_a_connection_is_busy_while_something_moves() -> None:
    """Busy lasts as long as the association timeout allows silence, then it counts as a miss."""
    busy = Reading(stopped=False, connections=1, cpu_ticks=0)
    found = judge(busy, 299, 300)
    assert found is not None and found.verdict is Verdict.BUSY
    found = judge(busy, 300, 300)
    assert found is not None and found.verdict is Verdict.MISSED and "300 s" in found.why


def test_a_stopped_child_is_missed_even_when_busy() -> None:
    """A process that a signal stopped serves nobody."""
    found = judge(Reading(stopped=True, connections=3, cpu_ticks=0), 0, 300)
    assert found is not None and found.verdict is Verdict.MISSED


def test_output_and_cpu_time_are_movement() -> None:
    """Either change starts the silence anew."""
    movement = Movement(now=0)
    assert movement.still_secs(5, output_bytes=0, cpu_ticks=0) == 0
    assert movement.still_secs(9, output_bytes=0, cpu_ticks=0) == 4
    assert movement.still_secs(20, output_bytes=1, cpu_ticks=0) == 0
    assert movement.still_secs(30, output_bytes=1, cpu_ticks=1) == 0
    assert movement.still_secs(31, output_bytes=1, cpu_ticks=1) == 1


def test_open_sockets_are_counted() -> None:
    """A process that listens has one socket more; of one that is gone, or hidden, none is seen."""
    before = open_sockets(os.getpid())
    with socket.socket():
        assert open_sockets(os.getpid()) == before + 1
    assert open_sockets(2**22 + 1) == 0
