"""UIDs."""

from __future__ import annotations

import pytest

from harmonyd.dimse.uid import is_uid, name_of


@pytest.mark.parametrize("text", ["1.2", "0.0", "1.2.840.10008.1.1", "2.25.0", "1." + "9" * 62])
def test_uids_are_recognised(text: str) -> None:
    """Numbers without leading zeros between dots, 64 characters at most."""
    assert is_uid(text)


@pytest.mark.parametrize(
    "text",
    ["", ".", "1.", ".1", "1..2", "1.02", "01.2", "1.2\n", " 1.2", "1.a", "1.2.*", "1.٣", "1.-2", "1." + "9" * 63],
)
def test_anything_else_is_not_a_uid(text: str) -> None:
    """Leading zeros, empty components, other characters and excess length are refused."""
    assert not is_uid(text)


@pytest.mark.parametrize(
    ("uid", "file_name", "name"),
    [
        ("1.2.3", "any.dcm", "1.2.3"),
        ("../../etc/passwd", "CT.1.2.3", "CT.1.2.3"),
        ("", "..\\..\\x y\n", "__.._x_y_"),
        ("01.2", ".hidden", "_hidden"),
    ],
)
def test_what_an_instance_is_called(uid: str, file_name: str, name: str) -> None:
    """Nothing that leaves the folder a ZIP is unpacked into, whatever a sender calls its objects."""
    assert name_of(uid, file_name) == name
