"""Rules of an operator: set, remove, map, and put text before or behind the values of elements; hash UIDs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pydicom.datadict import dictionary_has_tag, dictionary_keyword

from harmonyd.rewriting.changes import Affix, Change, Hashed, Table
from harmonyd.rewriting.editor import Check, Done, asked
from harmonyd.rewriting.errors import CannotRewrite, NotAskable
from harmonyd.rewriting.tree import Tree, everywhere

_LENGTHS = {"AE": 16, "SH": 16, "CS": 16, "LO": 64, "UI": 64, "PN": 64, "UC": 1 << 20}
"""Most characters of a value that may become longer (PS3.5 table 6.2-1)."""
_NO_INSTANCE = frozenset({0x0008010D, 0x00080117, 0x00080118, 0x0008010C, 0x00083002, 0x00041512})
"""UIDs that name a coding scheme, context group, mapping resource or transfer syntax."""
UNIVERSAL = ("", "*", "**")


@dataclass(frozen=True, slots=True)
class Place:
    """Where an element is: tags of sequences, then its own. ``anywhere``: in any item, too (then there is one tag)."""

    path: tuple[int, ...]
    anywhere: bool = False

    @property
    def tag(self) -> int:
        return self.path[-1]

    def trees(self, tree: Tree) -> Iterator[Tree]:
        """The data sets and items that may have it."""
        if self.anywhere:
            yield from everywhere(tree)
            return
        around = [tree]
        for tag in self.path[:-1]:
            around = [item for each in around for item in each.items(tag)]
        yield from around


@dataclass(frozen=True, slots=True)
class Rule:
    """Exactly one of ``change``, ``value`` (a fixed one; () is none), or neither: the element is removed."""

    place: Place
    vr: str
    change: Affix | Table | None = None
    value: tuple[str, ...] | None = None

    @property
    def action(self) -> str:
        if self.change is None:
            return "remove" if self.value is None else "set"
        return "map" if isinstance(self.change, Table) else "affix"


class Rules:
    """Implements ``Editor``. ``uids``: what becomes of all UIDs that name instances; None: they stay."""

    def __init__(self, rules: Sequence[Rule], uids: Hashed | None = None) -> None:
        self._rules = tuple(rules)
        self._uids = uids

    def forward(self, tree: Tree, done: Done) -> None:
        """See ``Editor``."""
        self._edit(tree, done, forward=True)

    def backward(self, tree: Tree, done: Done) -> None:
        """See ``Editor``."""
        self._edit(tree, done, forward=False)

    def _edit(self, tree: Tree, done: Done, *, forward: bool) -> None:
        if self._uids is not None:
            change_uids(tree, self._uids, done, forward=forward)
        for rule in self._rules if forward else reversed(self._rules):
            for place in rule.place.trees(tree):
                if rule.change is not None:
                    change_element(place, rule.place.tag, rule.change, done, rule.action, forward=forward)
                elif forward:
                    _replace(place, rule, done)

    def ask(self, tree: Tree, *, forward: bool) -> list[Check]:
        """See ``Editor``."""
        checks: list[Check] = []
        for rule in self._rules if forward else reversed(self._rules):
            for place in rule.place.trees(tree):
                if rule.place.tag not in place.tags():
                    continue
                if rule.change is not None:
                    checks += ask_element(place, rule.place.tag, rule.change, forward=forward, top=place is tree)
                else:
                    forbid(place, rule.place.tag)
        if self._uids is not None:
            for place in everywhere(tree):
                for tag in [tag for tag in place.tags() if names_instance(place, tag)]:
                    checks += ask_element(place, tag, self._uids, forward=forward, top=place is tree)
        return checks

    def uid(self, uid: str, *, forward: bool) -> str:
        """See ``Editor``."""
        if self._uids is None or not uid:
            return uid
        return self._uids.forward(uid) if forward else self._uids.backward(uid)

    def keep(self) -> None:
        """See ``Editor``."""
        if self._uids is not None:
            self._uids.pseudonyms.keep()


def names_instance(tree: Tree, tag: int) -> bool:
    """Tell whether an element has UIDs that name instances and the like, not classes and codes."""
    if tree.vr(tag) != "UI" or tag in _NO_INSTANCE:
        return False
    keyword = dictionary_keyword(tag) if dictionary_has_tag(tag) else ""
    return "ClassUID" not in keyword and "TransferSyntaxUID" not in keyword and "SOPClasses" not in keyword


def change_uids(tree: Tree, change: Change, done: Done, *, forward: bool) -> None:
    """Change all UIDs that name instances, in all items."""
    for place in everywhere(tree):
        for tag in place.tags():
            if names_instance(place, tag):
                change_element(place, tag, change, done, "uid", forward=forward)


def change_element(place: Tree, tag: int, change: Change, done: Done, action: str, *, forward: bool) -> None:
    """Change the values of an element. Raises ``CannotRewrite`` for one that becomes too long."""
    texts = place.texts(tag)
    changed = [change.forward(text) if forward else change.backward(text) for text in texts]
    if changed == texts:
        return
    vr = place.vr(tag)
    if any(len(text) > _LENGTHS.get(vr, len(text)) for text in changed):
        raise CannotRewrite(
            f"A value of ({tag >> 16:04X},{tag & 0xFFFF:04X}) becomes longer than its VR {vr} allows.",
            hint="Shorten what the rewrite middleware adds.",
        )
    _put(place, tag, vr, changed)
    done.note(action, tag)


def _replace(place: Tree, rule: Rule, done: Done) -> None:
    tag = rule.place.tag
    if rule.value is not None:
        if tag not in place.tags() and (rule.place.anywhere or not place.takes_new):
            return
        _put(place, tag, rule.vr, rule.value)
    elif tag in place.tags():
        place.remove(tag)
    else:
        return
    done.note(rule.action, tag)


def _put(place: Tree, tag: int, vr: str, texts: Sequence[str]) -> None:
    try:
        place.put(tag, vr, texts)
    except ValueError as error:
        raise CannotRewrite(f"({tag >> 16:04X},{tag & 0xFFFF:04X}) of VR {vr} cannot have its new value.") from error


def ask_element(place: Tree, tag: int, change: Change, *, forward: bool, top: bool) -> list[Check]:
    """Change one key of a query. Only keys of the top level are checked afterwards."""
    texts = place.texts(tag)
    if not texts or all(text in UNIVERSAL for text in texts):
        return []
    values, check = asked(change, texts, place.vr(tag), forward=forward)
    if values != texts:
        place.put(tag, place.vr(tag), values)
    return [Check(tag, tuple(texts))] if check and top else []


def _asks(place: Tree, tag: int) -> bool:
    return any(text not in UNIVERSAL for text in place.texts(tag))


def forbid(place: Tree, tag: int) -> None:
    """Raise ``NotAskable`` for a key with a value that does not match everything, at whatever depth."""
    inside = [at for item in place.items(tag) for at in everywhere(item)]
    if _asks(place, tag) or any(_asks(at, each) for at in inside for each in at.tags()):
        name = (dictionary_keyword(tag) if dictionary_has_tag(tag) else "") or f"{tag:08X}"
        raise NotAskable(
            f"{name} is set or removed on the way here, so it cannot be asked for.",
            hint="Leave its value empty, or ask for another attribute.",
            key=name,
        )
