"""``path_filter``: only paths that match a rule reach the backend."""

from __future__ import annotations

from collections.abc import Iterable

from harmonyd.envelope import RequestEnvelope, ResponseEnvelope
from harmonyd.errors import NotFound
from harmonyd.middleware.passthru import Passthru


class PathFilter(Passthru):
    """Lets a request pass when its path after the prefix matches one of ``rules``, else raises ``NotFound``.

    A rule such as ``/Patient/{id}`` is compared by whole segments; a segment in braces matches exactly one that is not
    empty. One trailing slash is ignored, in the rule and in the path.
    """

    def __init__(self, name: str, rules: Iterable[str]) -> None:
        super().__init__(name)
        self._rules = tuple(_segments(rule) for rule in rules)

    async def on_request(self, request: RequestEnvelope) -> ResponseEnvelope | None:
        """Raise ``NotFound`` unless a rule matches."""
        if not self.allows(request.path):
            raise NotFound("No such route.", hint="The path filter here lets only the paths pass that it lists.")
        return None

    def allows(self, path: str) -> bool:
        """Tell whether a rule matches."""
        segments = _segments(path)
        return any(_matches(rule, segments) for rule in self._rules)


def _segments(path: str) -> list[str]:
    return path.removesuffix("/").removeprefix("/").split("/")


def _matches(rule: list[str], path: list[str]) -> bool:
    return len(rule) == len(path) and all(map(_segment_matches, rule, path))


def _segment_matches(rule: str, segment: str) -> bool:
    if rule.startswith("{") and rule.endswith("}"):
        return bool(segment)
    return rule == segment
