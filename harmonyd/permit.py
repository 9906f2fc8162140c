"""What a subject may do: actions on backends, perhaps only where the identifying attributes match.

A permit is made by the ``authorize`` middleware and held to where a request is performed, because only there it is
known what the request is: a path, a body, middleware and the endpoint have their say in it.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

from harmonyd.errors import Forbidden, Unauthorized
from harmonyd.subject import Subject

ACTIONS = ("echo", "find", "retrieve", "store", "commit", "mpps", "forward", "manage")
"""``forward`` is whatever an http or echo backend is asked; ``manage`` the paths that are about harmonyd itself."""
ANYBODY, ANONYMOUS = "*", "anonymous"
"""Roles in rules: of everybody whose credentials were checked, and of those, too, who have none."""
_ACTION_OF = {"get": "retrieve", "move": "retrieve", "worklist": "find"}


@dataclass(frozen=True, slots=True)
class Element:
    """An attribute, one of whose values has to match one of the patterns (``*`` and ``?``, PS3.4 section C.2.2.2.4)."""

    tag: str
    """``GGGGEEEE``."""
    keyword: str
    patterns: tuple[str, ...]

    def holds(self, values: Sequence[str]) -> bool:
        return any(_pattern(pattern).match(value) for value in values for pattern in self.patterns)


Only = tuple[Element, ...]
"""All of these have to match."""
Limits = tuple[tuple[Only, ...], ...]
"""Of each of these, one has to match. Empty: no limit."""
UNLIMITED: Limits = ()


@dataclass(frozen=True, slots=True)
class Rule:
    """Lets roles do something. What no rule allows is forbidden."""

    roles: frozenset[str]
    allow: frozenset[str]
    backends: frozenset[str] = frozenset()
    """Empty: all."""
    only: Only = ()
    """Empty: whatever it is about."""

    def is_for(self, subject: Subject | None) -> bool:
        if ANONYMOUS in self.roles:
            return True
        return subject is not None and (ANYBODY in self.roles or not self.roles.isdisjoint(subject.roles))


class Permit(Protocol):
    """What is allowed."""

    def limits(self, action: str, backend: str) -> Limits:
        """Return what an action (or DIMSE operation) at a backend is limited to.

        Where it is not allowed at all, raises ``Unauthorized`` for who has shown no credentials, else ``Forbidden``.
        """
        ...

    def allows(self, action: str, backend: str) -> bool:
        """Tell the same, without limits and errors."""
        ...

    def refused(self, action: str, backend: str) -> None:
        """Take note that a request was refused because of its limits."""
        ...


class Rules:
    """The permit of one subject. ``tell`` hears of each refusal: the action, and the backend."""

    def __init__(
        self,
        subject: Subject | None,
        rules: Iterable[Rule],
        challenges: Callable[[], str],
        tell: Callable[[str, str], None],
    ) -> None:
        """``challenges``: what WWW-Authenticate says to one without credentials."""
        self._subject = subject
        self._rules = [rule for rule in rules if rule.is_for(subject)]
        self._challenges = challenges
        self._tell = tell

    def _found(self, action: str, backend: str) -> list[Rule]:
        wanted = _ACTION_OF.get(action, action)
        return [
            rule for rule in self._rules if wanted in rule.allow and (not rule.backends or backend in rule.backends)
        ]

    def allows(self, action: str, backend: str) -> bool:
        return bool(self._found(action, backend))

    def refused(self, action: str, backend: str) -> None:
        self._tell(_ACTION_OF.get(action, action), backend)

    def limits(self, action: str, backend: str) -> Limits:
        found = self._found(action, backend)
        if not found:
            self._tell(_ACTION_OF.get(action, action), backend)
            if self._subject is None:
                raise Unauthorized(
                    "This needs credentials, and the request has none.",
                    hint="WWW-Authenticate says which will do.",
                    www_authenticate=self._challenges(),
                )
            raise Forbidden(
                f"You may not do this here: {_ACTION_OF.get(action, action)}.",
                hint="Rules of the authorize middleware say which role may do what.",
            )
        return UNLIMITED if any(not rule.only for rule in found) else (tuple(rule.only for rule in found),)


@dataclass(frozen=True, slots=True)
class Both:
    """What two permits allow."""

    one: Permit
    other: Permit

    def limits(self, action: str, backend: str) -> Limits:
        return self.one.limits(action, backend) + self.other.limits(action, backend)

    def allows(self, action: str, backend: str) -> bool:
        return self.one.allows(action, backend) and self.other.allows(action, backend)

    def refused(self, action: str, backend: str) -> None:
        self.one.refused(action, backend)


@dataclass(frozen=True, slots=True)
class Acting:
    """A permit for what has to be found out on behalf of an action: whoever may do that may ask for it."""

    permit: Permit
    action: str

    def limits(self, action: str, backend: str) -> Limits:
        return self.permit.limits(self.action, backend)

    def allows(self, action: str, backend: str) -> bool:
        return self.permit.allows(self.action, backend)

    def refused(self, action: str, backend: str) -> None:
        self.permit.refused(self.action, backend)


class Nothing:
    """The permit of a request that nobody looked at: it is answered by its endpoint alone."""

    def refused(self, action: str, backend: str) -> None:
        """There is nobody to tell."""

    def limits(self, action: str, backend: str) -> Limits:
        raise Forbidden("This request was not authorized.")

    def allows(self, action: str, backend: str) -> bool:
        return False


NOTHING: Permit = Nothing()


def both(one: Permit | None, other: Permit | None) -> Permit | None:
    """What is left of two; None allows everything."""
    if one is None or other is None:
        return one or other
    return Both(one, other)


def acting(permit: Permit | None, action: str) -> Permit | None:
    """See ``Acting``; None allows everything."""
    return None if permit is None else Acting(permit, action)


def holds(limits: Limits, data_set: Mapping[str, Any]) -> bool:
    """Tell whether a data set (DICOM JSON Model) is within ``limits``. What is missing or empty matches nothing."""
    return all(
        any(all(element.holds(texts(data_set.get(element.tag))) for element in only) for only in alternatives)
        for alternatives in limits
    )


def elements(limits: Limits) -> dict[str, Element]:
    """By tag, the attributes that decide."""
    return {each.tag: each for alternatives in limits for only in alternatives for each in only}


def forced(limits: Limits) -> dict[str, str]:
    """By tag, the values that every match has: those a PACS can be asked for at once."""
    single = [alternatives[0] for alternatives in limits if len(alternatives) == 1]
    return {each.tag: each.patterns[0] for only in single for each in only if len(each.patterns) == 1}


def texts(element: Any) -> list[str]:
    """The values of an element as text: of a person name the Alphabetic part, nothing for what is empty."""
    values = element.get("Value") if isinstance(element, Mapping) else None
    found = [_text(value) for value in values] if isinstance(values, list) else []
    return [text for text in found if text]


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        value = value.get("Alphabetic")
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip(" ")


@lru_cache(maxsize=1000)
def _pattern(pattern: str) -> re.Pattern[str]:
    # A bracket would begin a set of characters, which DICOM does not have.
    return re.compile(fnmatch.translate(pattern.replace("[", "[[]")))
