"""A child as the struct that ``getProcessInfo`` returns, and as a line of a configuration that ``avail`` shows."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

from supervisor.options import split_namespec
from supervisor.states import ProcessStates
from supervisor.xmlrpc import capped_int

from harmonyd.control.api import Child
from harmonyd.supervision.figures import Figures

PRIORITY = 999
"""supervisor's default: all children are equal."""
_MB = 1_000_000


def state_code(child: Child) -> int:
    """supervisor's number for the state of a child."""
    code: int = getattr(ProcessStates, child.state)
    return code


def process_info(child: Child, now: float) -> dict[str, Any]:
    """``getProcessInfo``; ``now`` is in seconds since the epoch."""
    log_file = str(child.log.path or "")
    has_failed = child.state in ("BACKOFF", "FATAL")
    return {
        "name": child.name,
        "group": child.group,
        "start": capped_int(child.started_at),
        "stop": capped_int(child.stopped_at),
        "now": capped_int(now),
        "state": state_code(child),
        "statename": child.state,
        "spawnerr": child.note if has_failed else "",
        "exitstatus": _exit_status(child),
        "logfile": log_file,
        "stdout_logfile": log_file,
        "stderr_logfile": "",
        "pid": child.pid or 0,
        "description": description(child, now),
    }


def _exit_status(child: Child) -> int:
    """supervisor's: -1 when a signal ended it, 0 when nothing has ended yet."""
    if child.exit_code is not None:
        return child.exit_code
    return -1 if child.stopped_at else 0


def description(child: Child, now: float) -> str:
    """What ``supervisorctl status`` shows beside the state; for RUNNING as supervisord words it, then our figures."""
    if child.state == "RUNNING":
        uptime = timedelta(seconds=max(0, int(now) - int(child.started_at)))
        parts = [f"pid {child.pid}", f"uptime {uptime}", child.note, *figure_texts(child.figures)]
        return ", ".join(filter(None, parts))
    if child.state in ("STOPPED", "EXITED"):
        if not child.started_at:
            return "Not started"
        return time.strftime("%b %d %I:%M %p", time.localtime(child.stopped_at))
    return child.note


def figure_texts(figures: Figures | None) -> list[str]:
    """Figures for people."""
    if figures is None:
        return []
    texts = [f"{figures.rss_bytes / _MB:.0f} MB"]
    if figures.cpu_percent is not None:
        texts.append(f"{figures.cpu_percent:.1f}% CPU")
    return texts


def config_info(child: Child) -> dict[str, Any]:
    """``getAllConfigInfo`` for a child that is there."""
    log_file = str(child.log.path or "none")
    return {**_config(child.group, child.name), "command": " ".join(child.argv), "stdout_logfile": log_file}


def config_info_of_name(name: str) -> dict[str, Any]:
    """``getAllConfigInfo`` for what a configuration that was read again would add."""
    group, process = split_namespec(name)
    return {**_config(group, process or group), "inuse": False}


def _config(group: str, name: str) -> dict[str, Any]:
    return {
        "autostart": True,
        "directory": "none",
        "uid": "none",
        "command": "",
        "exitcodes": [],
        "group": group,
        "group_prio": PRIORITY,
        "inuse": True,
        "killasgroup": True,
        "name": name,
        "process_prio": PRIORITY,
        "redirect_stderr": True,
        "startretries": 0,
        "startsecs": 0,
        "stdout_capture_maxbytes": 0,
        "stdout_events_enabled": False,
        "stdout_logfile": "none",
        "stdout_logfile_backups": 0,
        "stdout_logfile_maxbytes": 0,
        "stdout_syslog": False,
        "stopsignal": 15,
        "stopwaitsecs": 0,
        "stderr_capture_maxbytes": 0,
        "stderr_events_enabled": False,
        "stderr_logfile": "none",
        "stderr_logfile_backups": 0,
        "stderr_logfile_maxbytes": 0,
        "stderr_syslog": False,
        "serverurl": "none",
    }
