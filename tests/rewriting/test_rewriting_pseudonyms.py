"""Pseudonyms: the same for the same key, valid, and known again after a restart, up to a bound."""

from __future__ import annotations

import stat
from pathlib import Path

import pydicom.uid
from rewriting_kit import pseudonyms

from harmonyd.rewriting.pseudonyms import ID, UID


def test_by_key(tmp_path: Path) -> None:
    """Another key, another name; a UID of 128 bits below 2.25, an identifier of letters and digits."""
    one, other = pseudonyms(tmp_path / "a"), pseudonyms(tmp_path / "b", b"o" * 32)
    assert one.uid("1.2.3") == pseudonyms(tmp_path / "c").uid("1.2.3") != other.uid("1.2.3")
    assert pydicom.uid.UID(one.uid("1.2.3")).is_valid
    assert int(one.uid("1.2.3").removeprefix("2.25.")) < 1 << 128
    assert len(one.identifier("7")) == 16
    assert one.identifier("7") != one.identifier("8")
    assert 1 <= one.days("7") <= 3650
    assert (one.uid(""), one.identifier("")) == ("", "")


def test_known_again(tmp_path: Path) -> None:
    """What was given out is known before and after it is written down, also to the next process; nothing else is."""
    first = pseudonyms(tmp_path)
    made, name = first.uid("1.2.3"), first.identifier("7")
    assert first.original(UID, made) == "1.2.3"
    first.keep()
    first.close()
    again = pseudonyms(tmp_path)
    assert (again.original(UID, made), again.original(ID, name)) == ("1.2.3", "7")
    assert again.original(UID, name) is None
    file = tmp_path / "names" / "x.sqlite"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    again.close()


def test_a_bound(tmp_path: Path) -> None:
    """The newest are known, and one that comes again after it was forgotten is known again."""
    names = pseudonyms(tmp_path, max_known=10)
    for number in range(40):
        names.uid(f"1.2.{number}")
        names.keep()
    known = [n for n in range(40) if names.original(UID, pseudonyms(tmp_path / "other").uid(f"1.2.{n}"))]
    assert known[-1] == 39
    assert len(known) <= 20
    first = names.uid("1.2.0")
    names.keep()
    assert names.original(UID, first) == "1.2.0"
    names.close()
