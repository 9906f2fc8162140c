"""DIMSE status codes."""

from __future__ import annotations

import pytest

from harmonyd.dimse import status
from harmonyd.dimse.status import StatusCategory

OPERATIONS = ("echo", "find", "get", "move", "store")


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ([0x0000], StatusCategory.SUCCESS),
        ([0xFF00, 0xFF01], StatusCategory.PENDING),
        ([0xFE00], StatusCategory.CANCEL),
        ([0x0001, 0x0107, 0x0116, 0xB000, 0xB006, 0xB007, 0xBFFF], StatusCategory.WARNING),
        ([0x0110, 0x0122, 0x0124, 0x0213, 0xA700, 0xA801, 0xA900, 0xC001, 0xCFFF], StatusCategory.FAILURE),
        ([0x1234, 0xD000, 0xFF02], StatusCategory.FAILURE),
    ],
)
def test_category(codes: list[int], expected: StatusCategory) -> None:
    """Each code has the category of PS3.7 Annex C, and an unknown one is a failure."""
    assert {status.category(code) for code in codes} == {expected}


@pytest.mark.parametrize(
    ("operation", "code", "words"),
    [
        ("echo", 0x0000, "Success"),
        ("find", 0xA700, "out of resources"),
        ("find", 0xA900, "does not match"),
        ("find", 0xC001, "unable to process"),
        ("find", 0xFE00, "Cancelled"),
        ("find", 0xFF01, "optional keys"),
        ("get", 0xA701, "number of matches"),
        ("get", 0xA702, "sub-operations"),
        ("get", 0xB000, "one or more failures"),
        ("move", 0xA801, "destination unknown"),
        ("move", 0xFE00, "Cancelled"),
        ("store", 0xA700, "out of resources"),
        ("store", 0xA7FF, "out of resources"),
        ("store", 0xA900, "does not match"),
        ("store", 0xB000, "coercion"),
        ("store", 0xB006, "discarded"),
        ("store", 0xB007, "does not match"),
        ("store", 0xC123, "cannot understand"),
        ("echo", 0x0122, "not supported"),
        ("move", 0x0124, "not authorized"),
    ],
)
def test_text_says_what_the_code_means_in_its_operation(operation: str, code: int, words: str) -> None:
    """The same code can mean different things in different operations."""
    assert words in status.text(operation, code)


@pytest.mark.parametrize(
    "code",
    [261, 262, 263, 272, 273, 274, 277, 279, 280, 281, 288, 289, 290, 291, 292, 528, 529, 530, 531],
)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_general_codes_have_words_in_every_operation(operation: str, code: int) -> None:
    """The codes of PS3.7 Annex C are known everywhere."""
    assert status.text(operation, code) != "Unknown status"


@pytest.mark.parametrize(("operation", "code"), [("find", 0x1234), ("echo", 0xC000), ("find", 0xA801)])
def test_unknown_codes_are_said_to_be_unknown(operation: str, code: int) -> None:
    """A code without a meaning in its operation gets no invented one."""
    assert status.text(operation, code) == "Unknown status"
