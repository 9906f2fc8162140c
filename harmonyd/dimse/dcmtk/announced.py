"""Which objects a storescp was sent, as its log says: the only trace of one whose file has not even a header.

storescp answers Success to a small object that it could not write, and leaves an empty file.
"""

from __future__ import annotations

import re

MAX_REMEMBERED = 10_000
_MAX_NAMED = 20
_FIELD = re.compile(rb"(?:@DEBUG\|(?=[AM])|D: )?(Affected SOP Instance UID|Move Originator AE Title) *: (.*)")


class Announced:
    """The objects that were announced, and have not arrived whole."""

    def __init__(self) -> None:
        self._missing: dict[str, None] = {}
        self._originators: dict[str, str] = {}
        self._instance = ""

    def heard(self, line: bytes) -> bool:
        """A line of the log; whether it was about an object."""
        matched = _FIELD.match(line)
        if matched is None:
            return False
        value = matched[2].decode("latin-1").strip(" \r\n\0")
        if matched[1].startswith(b"Affected"):
            self._instance = value
            self._missing[value] = None
            if len(self._missing) > MAX_REMEMBERED:
                del self._missing[next(iter(self._missing))]
        elif len(self._originators) < MAX_REMEMBERED:
            self._originators[self._instance] = value
        return True

    def arrived(self, sop_instance_uid: str) -> None:
        """It is whole."""
        self._missing.pop(sop_instance_uid, None)

    def originator_of(self, sop_instance_uid: str) -> str:
        """Move Originator AE title; empty when it named none."""
        return self._originators.get(sop_instance_uid, "")

    def candidates(self) -> str:
        """For people: which objects a file without a header may be."""
        named = list(self._missing)[-_MAX_NAMED:]
        return f"; of what was announced, this did not arrive whole: {', '.join(named)}" if named else ""
