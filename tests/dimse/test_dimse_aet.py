"""AE titles."""

from __future__ import annotations

import pytest

from harmonyd.dimse.aet import check_aet


@pytest.mark.parametrize("text", ["A", "HARMONY_SCU", "a b-c.d", "X" * 16, "user@host", "$(id)", "#a", "-aet"])
def test_a_valid_title_comes_back(text: str) -> None:
    """Printable ASCII of up to 16 characters is a title, whatever it might mean elsewhere."""
    assert check_aet(text) == text


def test_spaces_around_a_title_are_dropped() -> None:
    """Leading and trailing spaces are not significant and do not count for the length."""
    assert check_aet("  STORE SCP 12345678  ".replace("12345678", "123456")) == "STORE SCP 123456"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("   ", "only spaces"),
        ("X" * 17, "at most 16"),
        ("A\\B", "backslash"),
        ("A\nB", "printable"),
        ("A\x00", "printable"),
        ("\tA", "printable"),
        ("A\x7f", "printable"),
        ("MÜLLER", "ASCII"),
        ("@/etc/hostname", "@"),
        (" @x", "@"),
    ],
)
def test_an_invalid_title_is_refused_with_the_reason(text: str, reason: str) -> None:
    """The message names what is wrong."""
    with pytest.raises(ValueError, match=reason):
        check_aet(text)
