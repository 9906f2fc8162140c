"""A limit on the memory of children: a kept one above it is replaced, a once-child ended."""

from __future__ import annotations

from collections.abc import Mapping

from twisted.logger import Logger

from harmonyd.supervision.figures import Figures
from harmonyd.supervision.runner import ProcessSupervisor

_MB = 1_000_000
_log = Logger()


def enforce(supervisor: ProcessSupervisor, limit_mb: int, found: Mapping[int, Figures]) -> None:
    """Compare the latest figures, by pid, with the limit; 0 is none."""
    if not limit_mb:
        return
    large = {pid: figures.rss_bytes // _MB for pid, figures in found.items() if figures.rss_bytes > limit_mb * _MB}
    for kept in supervisor.children():
        if kept.pid in large:
            _log.error("{child}: {why}", child=kept.full_name, pid=kept.pid, why=_text(large[kept.pid], limit_mb))
            kept.replace(_text(large[kept.pid], limit_mb))
    for once in supervisor.once_children():
        if once.pid in large and not once.process.exited:
            _log.error("{child}: {why}", child=once.spec.name, pid=once.pid, why=_text(large[once.pid], limit_mb))
            once.end(_text(large[once.pid], limit_mb))


def _text(used_mb: int, limit_mb: int) -> str:
    return f"it used {used_mb} MB of memory, and memory_limit_mb in [supervision] is {limit_mb}"
