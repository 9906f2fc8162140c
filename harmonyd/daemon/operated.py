"""The daemon as the operator's side sees it (``control.api.Controlled``)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from harmonyd.config.model import Config
from harmonyd.control.api import Child, LogView, Reloader
from harmonyd.control.children import children_of, pids_of
from harmonyd.supervision import memory
from harmonyd.supervision.figures import Figures, Sampler
from harmonyd.supervision.runner import ProcessSupervisor
from harmonyd.telemetry.logging import LATEST


class Operated:
    """Implements ``Controlled`` for the running daemon."""

    def __init__(self, config: Config, reactor: Any, supervisor: ProcessSupervisor, reloader: Reloader) -> None:
        self.config = config
        """The one in force; a reload sets it anew."""
        self.is_stopping = False
        self.reloader = reloader
        self._reactor = reactor
        self._supervisor = supervisor
        self.sampler = Sampler(reactor, partial(pids_of, supervisor), self._limit_memory)

    @property
    def id(self) -> str:
        return self.config.id

    @property
    def main_log(self) -> LogView:
        """The log of this process; its end is in memory, wherever it goes."""
        return LogView(LATEST, self.config.logging.file, self._clear_log)

    def children(self) -> list[Child]:
        """Kept children, and once-children that run."""
        return children_of(self._supervisor, self.sampler)

    def shutdown(self) -> None:
        """Stop the reactor, and with it the daemon, once the answer is on its way."""
        self.is_stopping = True
        self._reactor.callLater(0, self._reactor.stop)

    def _limit_memory(self, found: Mapping[int, Figures]) -> None:
        memory.enforce(self._supervisor, self.config.supervision.memory_limit_mb, found)

    def _clear_log(self) -> None:
        LATEST.clear()
        if self.config.logging.file is not None:
            self.config.logging.file.unlink(missing_ok=True)  # the next line opens it anew
