"""Calling the line handlers of specifications without trusting them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from twisted.logger import Logger


class LineHandler:
    """Calls ``on_line`` for each line. What it raises is logged (the first time), and never reaches the reader."""

    log = Logger()

    def __init__(self, child: str, on_line: Callable[[bytes], None] | None) -> None:
        self._child = child
        self._on_line = on_line
        self._complained = False

    def __call__(self, lines: Sequence[bytes]) -> None:
        if self._on_line is None:
            return
        for line in lines:
            try:
                self._on_line(line)
            except Exception:  # noqa: BLE001 - a handler's bug must not stop the reader
                self._complain()

    def _complain(self) -> None:
        if not self._complained:
            self._complained = True
            self.log.failure("{child}: the handler of its lines failed", child=self._child)
