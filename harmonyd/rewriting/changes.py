"""How one value becomes another, and back, and what a query's value becomes."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from harmonyd.rewriting.errors import NothingMatches
from harmonyd.rewriting.pseudonyms import ID, UID, Pseudonyms, is_well_known

_WILD = re.compile(r"[*?]")


@dataclass(frozen=True, slots=True)
class Asked:
    """A query's value in the other view. ``check``: it matches more than was asked for, so matches are looked at."""

    value: str
    check: bool = False


ALL = Asked("", check=True)


class Change(Protocol):
    """Of values that have a way back."""

    def forward(self, value: str) -> str: ...

    def backward(self, value: str) -> str:
        """Return the value before; one that was not made here as it is."""
        ...

    def ask_forward(self, value: str) -> Asked:
        """Return what is to be asked for where values are changed, in place of one that is not empty.

        Raises ``NothingMatches``.
        """
        ...

    def ask_backward(self, value: str) -> Asked:
        """The same for a query in terms of what values become. Raises ``NothingMatches``."""
        ...


def is_pattern(value: str) -> bool:
    """Tell whether a query's value has wild cards (PS3.4 section C.2.2.2.4)."""
    return bool(_WILD.search(value))


def matches(pattern: str, value: str, vr: str) -> bool:
    """Tell whether a value is what a query asks for: person names in small letters or capitals."""
    if vr == "PN":
        pattern, value = pattern.upper(), value.upper()
    return re.match(fnmatch.translate(pattern.replace("[", "[[]")), value) is not None


@dataclass(frozen=True, slots=True)
class Affix:
    """Text before and behind."""

    prefix: str = ""
    suffix: str = ""

    def forward(self, value: str) -> str:
        return f"{self.prefix}{value}{self.suffix}" if value else value

    def backward(self, value: str) -> str:
        bare = self._bare(value)
        return value if bare is None else bare

    def _bare(self, value: str) -> str | None:
        around = len(self.prefix) + len(self.suffix)
        fits = len(value) > around and value.startswith(self.prefix) and value.endswith(self.suffix)
        return value[len(self.prefix) : len(value) - len(self.suffix)] if fits else None

    def ask_forward(self, value: str) -> Asked:
        return Asked(self.forward(value))

    def ask_backward(self, value: str) -> Asked:
        bare = self._bare(value)
        if bare is not None:
            return Asked(bare)
        if is_pattern(value):
            return ALL
        raise NothingMatches


@dataclass(frozen=True, slots=True)
class Table:
    """Some values by others; all else stays."""

    there: Mapping[str, str]
    back: Mapping[str, str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "back", {new: old for old, new in self.there.items()})

    def forward(self, value: str) -> str:
        return self.there.get(value, value)

    def backward(self, value: str) -> str:
        return self.back.get(value, value)

    def ask_forward(self, value: str) -> Asked:
        return ALL if is_pattern(value) else Asked(self.forward(value))

    def ask_backward(self, value: str) -> Asked:
        return ALL if is_pattern(value) else Asked(self.backward(value))


@dataclass(frozen=True, slots=True)
class Hashed:
    """A pseudonym by keyed hash."""

    pseudonyms: Pseudonyms
    kind: str = UID

    def forward(self, value: str) -> str:
        return self.pseudonyms.uid(value) if self.kind == UID else self.pseudonyms.identifier(value)

    def backward(self, value: str) -> str:
        return self.pseudonyms.original(self.kind, value) or value

    def ask_forward(self, value: str) -> Asked:
        if is_pattern(value):
            return ALL
        names = self.pseudonyms
        # Whoever asks for much that is not there is not to fill the table.
        return Asked(names.uid(value, gives=False) if self.kind == UID else names.identifier(value, gives=False))

    def ask_backward(self, value: str) -> Asked:
        if is_pattern(value):
            return ALL
        if self.kind == UID and is_well_known(value):
            return Asked(value)
        original = self.pseudonyms.original(self.kind, value)
        if original is None:
            raise NothingMatches
        return Asked(original)


__all__ = ["ALL", "ID", "UID", "Affix", "Asked", "Change", "Hashed", "Table", "is_pattern", "matches"]
