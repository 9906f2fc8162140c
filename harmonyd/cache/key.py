"""What a retrieve was asked for, and so what a part of the cache holds."""

from __future__ import annotations

from typing import NamedTuple


class Key(NamedTuple):
    """A study, series or instance at one node. Empty UIDs: all below."""

    node: str
    """The backend and the address behind it: another address is another node."""
    study: str
    series: str = ""
    instance: str = ""

    @property
    def level(self) -> str:
        """The query level."""
        return "IMAGE" if self.instance else "SERIES" if self.series else "STUDY"

    @property
    def uids(self) -> dict[str, str]:
        """The unique keys, by keyword."""
        named = {"StudyInstanceUID": self.study, "SeriesInstanceUID": self.series, "SOPInstanceUID": self.instance}
        return {keyword: uid for keyword, uid in named.items() if uid}

    @property
    def of_series(self) -> Key:
        """The series that an instance belongs to."""
        return self._replace(instance="")

    @property
    def wider(self) -> tuple[Key, ...]:
        """This one, and all that hold it, the nearest first."""
        keys = (self, self._replace(instance=""), self._replace(series="", instance=""))
        return tuple(dict.fromkeys(keys))

    def holds(self, other: Key) -> bool:
        """Tell whether ``other`` is this one or below it."""
        return self in other.wider
