"""What the log of one ``storescp --inetd`` tells of C-STORE requests and their answers."""

from __future__ import annotations

import re

_REQUEST = re.compile(rb"@DEBUG\|Message Type *: C-STORE RQ")
_ANSWER = re.compile(rb"@TRACE\|\(0000,0100\) US 32769 ")
"""Command Field of a C-STORE response (PS3.7 table 9.3-2)."""
_STATUS = re.compile(rb"@TRACE\|\(0000,0900\) US (\d+) ")


class StoreLog:
    """Requests and answers are counted, in the order of the association.

    The peer writes part of it (UIDs, AE titles), but of its own association only.
    """

    def __init__(self) -> None:
        self.successes = 0
        """Requests that were answered with Success."""
        self._requests = 0
        self._answers = 0
        self._in_answer = False

    @property
    def is_cut(self) -> bool:
        """The last request was not answered. After a failure, file and request cannot be told to belong together."""
        return self._requests > self._answers and self.successes == self._answers

    def feed(self, line: bytes) -> None:
        """Take in one line."""
        if _REQUEST.match(line):
            self._requests += 1
        elif _ANSWER.match(line):
            self._answers += 1
            self._in_answer = True
        elif self._in_answer and (status := _STATUS.match(line)):
            self._in_answer = False
            self.successes += not int(status[1])
