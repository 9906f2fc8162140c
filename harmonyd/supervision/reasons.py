"""Why a child is in its state, and why it ended: what its exit and its last words tell."""

from __future__ import annotations

from harmonyd.supervision.api import ExitRecord
from harmonyd.supervision.process import exit_text
from harmonyd.supervision.states import State

PLAIN = {State.STARTING: "starting", State.RUNNING: "", State.STOPPING: "stopping", State.STOPPED: "stopped"}
"""What is said of a child that comes into one of these states; failures say theirs before."""
_NOT_EXECUTED = (126, 127)
"""Exit codes of setpriv and setsid when the program behind them cannot be run."""
_MAX_LINE_BYTES = 200
# DCMTK's command line parser says "error: ..." without a level, and only about options.
_OPTIONS = b"error: "
# What storescp says of a port below 1024 to everybody but root, whatever the kernel would allow.
_PRIVILEGED_PORT = b"insufficient privileges"


def explained(record: ExitRecord) -> str:
    """The exit, and the last line that was said."""
    last = record.last_line[:_MAX_LINE_BYTES].decode("utf-8", "replace") or "it said nothing"
    return f"{exit_text(record.exit_code, None)}: {last}"


def is_for_good(record: ExitRecord) -> bool:
    """Whether another try must end the same way: no such program, a wrong option, a port that it may not have."""
    lines = record.output.splitlines()
    refused = any(line.startswith(_OPTIONS) or line.endswith(_PRIVILEGED_PORT) for line in lines)
    return (record.exit_code == 1 and refused) or record.exit_code in _NOT_EXECUTED


def port_was_taken(record: ExitRecord) -> bool:
    """Whether somebody took the port between our look at it and the child's start."""
    return b"Address already in use" in record.output
