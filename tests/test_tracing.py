"""Trace context from the client (W3C), and spans that cost nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from harmonyd import tracing
from harmonyd.tracing import NO_SPAN, Trace, begin, note, parse, trace_of

ID, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.mark.parametrize(
    ("given", "flags"),
    [
        (f"00-{ID}-{SPAN}-01", 1),
        (f"00-{ID}-{SPAN}-00", 0),
        (f" 00-{ID}-{SPAN}-03 ", 1),
        (f"01-{ID}-{SPAN}-01-more", 1),
        (f"fe-{ID}-{SPAN}-00", 0),
    ],
)
def test_a_valid_traceparent(given: str, flags: int) -> None:
    """A later version is read as far as this one goes; of the flags, only that it is sampled."""
    assert parse(given, "a=1,b=2") == Trace(ID, SPAN, flags, "a=1,b=2")


@pytest.mark.parametrize(
    "given",
    [
        "",
        "x",
        f"ff-{ID}-{SPAN}-01",
        f"00-{ID}-{SPAN}-01-more",
        f"00-{ID.upper()}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{ID}-{'0' * 16}-01",
        f"00-{ID}-{SPAN}-1",
        f"00-{ID}-{SPAN}-01,00-{ID}-{SPAN}-01",
        f"01-{ID}-{SPAN}-01more",
        f"00-{ID}-{SPAN}-01\n",
    ],
)
def test_an_invalid_traceparent_is_ignored(given: str) -> None:
    """Section 3.2.2.3 of the recommendation; two header fields are as wrong as none."""
    assert parse(given) is None


@pytest.mark.parametrize("state", ["", "x" * 513, "a=\x01", "a=ü"])
def test_a_tracestate_that_cannot_be_passed_on_is_left_out(state: str) -> None:
    """The trace is known all the same."""
    assert parse(f"00-{ID}-{SPAN}-01", state) == Trace(ID, SPAN, 1)


def test_a_child_has_a_span_id_of_its_own() -> None:
    """In the same trace."""
    child = Trace(ID, SPAN, 1, "a=1").child()
    assert (child.trace_id, child.flags, child.state) == (ID, 1, "a=1")
    assert child.span_id != SPAN
    assert parse(child.traceparent, "a=1") == child


def test_the_traces_of_requests_are_bounded() -> None:
    """The latest ten thousand are known."""
    for number in range(10_050):
        note(f"bounded-{number}", ID)
    assert trace_of("bounded-10049") == ID
    assert trace_of("bounded-49") == ""


def test_nobody_records() -> None:
    """A span is its parent then; nothing is made."""
    tracing.install(None)
    parent = Trace(ID, SPAN)
    assert begin("x", None) is NO_SPAN
    assert begin("x", parent).trace is parent
    begin("x", parent).end("failed", a__b=1)


def test_opentelemetry_is_not_imported_unless_it_is_wanted() -> None:
    """Nor is it needed: all of the daemon can be imported without it."""
    program = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "import harmonyd.daemon.process, harmonyd.cli, harmonyd.web.front_end, harmonyd.daemon.spans\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry.')])"
    )
    ended = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert ended.stdout == "[]\n"


def test_only_one_module_imports_it() -> None:
    """So nothing else can by accident."""
    package = Path(tracing.__file__).parent
    users = [path.name for path in package.rglob("*.py") if "from opentelemetry" in path.read_text("utf-8")]
    assert users == ["spans.py"]
