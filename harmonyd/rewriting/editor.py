"""What middleware asks of a set of rules, and what is told of what they did."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from harmonyd.rewriting.changes import Asked, Change, matches
from harmonyd.rewriting.errors import NothingMatches
from harmonyd.rewriting.tree import Tree, vr_of


@dataclass(slots=True)
class Done:
    """How often what was done to which element; no values."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)

    def note(self, action: str, tag: int) -> None:
        """This was done to an element."""
        self.counts[action, f"{tag:08X}"] += 1

    def told(self) -> dict[str, dict[str, int]]:
        """By action, by tag."""
        told: dict[str, dict[str, int]] = {}
        for (action, tag), count in sorted(self.counts.items()):
            told.setdefault(action, {})[tag] = count
        return told


@dataclass(frozen=True, slots=True)
class Check:
    """What a match has to have, in the view of who asks: one of these values."""

    tag: int
    values: tuple[str, ...]

    def holds(self, tree: Tree) -> bool:
        """Tell whether a match has it. One without a value is not what was asked for."""
        vr = vr_of(self.tag)
        return any(matches(wanted, value, vr) for value in tree.texts(self.tag) for wanted in self.values)


class Editor(Protocol):
    """A set of rules. ``forward``: as they are written; ``backward``: as far as they can be undone."""

    def forward(self, tree: Tree, done: Done) -> None:
        """Change a data set. Raises ``CannotRewrite``."""
        ...

    def backward(self, tree: Tree, done: Done) -> None:
        """Undo it. What has no way back stays."""
        ...

    def ask(self, tree: Tree, *, forward: bool) -> list[Check]:
        """Change the identifier of a query; return what its matches have to be checked for.

        A value that does not exist in the other view becomes one that nothing has. Raises ``NotAskable``.
        """
        ...

    def uid(self, uid: str, *, forward: bool) -> str:
        """Return what becomes of a UID of an instance, a series or a study."""
        ...

    def keep(self) -> None:
        """Write down what has to be known later. Blocking."""
        ...


def asked(change: Change, texts: Sequence[str], vr: str, *, forward: bool) -> tuple[list[str], bool]:
    """The values of a key in the other view; whether matches have to be checked."""
    found: list[Asked] = []
    for text in texts:
        try:
            found.append(change.ask_forward(text) if forward else change.ask_backward(text))
        except NothingMatches:
            continue  # the others of the list may be there
    if not found:
        return [_nobodys(vr, texts)], False
    if any(not each.value for each in found):
        return [], True
    return [each.value for each in found], any(each.check for each in found)


def _nobodys(vr: str, texts: Sequence[str]) -> str:
    """A value that nothing has, so that whoever is asked finds nothing, and says so in its own way."""
    digest = hashlib.sha256("\0".join(texts).encode()).digest()
    return f"2.25.{int.from_bytes(digest[:16], 'big')}" if vr == "UI" else "Z" + digest.hex()[:15].upper()
