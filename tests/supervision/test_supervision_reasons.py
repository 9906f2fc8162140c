"""What a child's end tells."""

from __future__ import annotations

import pytest

from harmonyd.supervision import reasons
from harmonyd.supervision.api import ExitRecord


def ended(code: int, output: bytes, last_line: bytes = b"") -> ExitRecord:
    return ExitRecord(7, code, None, output, 0.1, last_line=last_line)


@pytest.mark.parametrize(
    ("code", "output", "for_good"),
    [
        (127, b"setpriv: failed to execute storescp: No such file or directory\n", True),
        (126, b"setpriv: failed to execute storescp: Permission denied\n", True),
        (1, b"$dcmtk: storescp v3.6.7\n\nerror: Unknown option --fast\n", True),
        (1, b"F: cannot listen on port 104, insufficient privileges\n", True),
        (1, b"F: cannot initialize network: 0006:031c Error: Address already in use\n", False),
        (1, b"E: error: something at run time\n", False),
        (66, b"error: of another kind\n", False),
        (1, b"", False),
    ],
)
def test_what_another_try_cannot_mend(code: int, output: bytes, for_good: bool) -> None:
    """No program, a wrong option and a port that it may not have end the tries; all else may pass."""
    assert reasons.is_for_good(ended(code, output)) is for_good


def test_the_last_line_explains() -> None:
    """What was said last stands behind the exit code, though of a talkative child the record has the beginning only."""
    assert reasons.explained(ended(3, b"W: one\n", b"F: two")) == "exited with code 3: F: two"
    assert reasons.explained(ended(3, b"")) == "exited with code 3: it said nothing"
    assert len(reasons.explained(ended(3, b"", b"x" * 60_000))) < 300


def test_a_port_that_was_taken() -> None:
    """The words of the C library, in whatever DCMTK says around them."""
    assert reasons.port_was_taken(ended(1, b"F: cannot initialize network: Address already in use\n"))
    assert not reasons.port_was_taken(ended(1, b"F: no memory\n"))
