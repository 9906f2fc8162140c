"""The journal's side of standard error: which priority a line has (sd-daemon(3)).

systemd hands what a service writes to the journal line by line; a line that starts with ``<N>`` gets priority N of
syslog(3), and loses the mark.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

__all__ = ["CRITICAL", "DEBUG", "ERROR", "INFO", "WARNING", "is_journal", "mark"]

CRITICAL, ERROR, WARNING, INFO, DEBUG = 2, 3, 4, 6, 7
"""LOG_CRIT, LOG_ERR, LOG_WARNING, LOG_INFO and LOG_DEBUG."""


def is_journal(descriptor: int, environ: Mapping[str, str]) -> bool:
    """Whether what is written to a descriptor goes to the journal: ``JOURNAL_STREAM`` names its device and inode.

    A descriptor that somebody has since redirected to a file or a terminal is another one.
    """
    try:
        stat = os.fstat(descriptor)
    except OSError:
        return False
    return environ.get("JOURNAL_STREAM") == f"{stat.st_dev}:{stat.st_ino}"


def mark(text: str, priority: int) -> str:
    """Put the priority before every line of a text; the result ends with a newline."""
    return "".join(f"<{priority}>{line}\n" for line in text.removesuffix("\n").split("\n"))
