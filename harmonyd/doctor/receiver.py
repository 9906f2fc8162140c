"""Our own port, on which the PACS delivers what a C-MOVE asks for. It is looked up, not used."""

from __future__ import annotations

from harmonyd.check import is_of
from harmonyd.doctor.case import Case
from harmonyd.doctor.report import Result, Side, Step
from harmonyd.supervision.ports import holder, holder_text, is_listened_on

NOBODY_ASKS = "nobody can ask for a C-MOVE from this backend"


def receiver(case: Case) -> Step:
    """Does the harmonyd that runs listen there?"""
    port, daemon = case.options.incoming_store_port, case.daemon
    listening = is_listened_on(port)
    details = {"port": port, "listening": listening, "daemon": daemon, "holder": holder(port) if listening else None}
    if not case.is_asked:
        return Step("receiver", Result.SKIPPED, NOBODY_ASKS, details=details)
    if daemon is not None and is_of(details["holder"], daemon):
        text = f"port {port} is that of the harmonyd that runs (pid {daemon})"
        return Step("receiver", Result.OK, text, details=details)
    is_certain, text, hint = _wrong(case, listening=listening, holder_is_known=details["holder"] is not None)
    if not case.moves:
        return Step("receiver", Result.SKIPPED, f"{text}; retrieves of this backend use C-GET", details=details)
    result = Result.ERROR if is_certain else Result.WARNING
    return Step("receiver", result, text, hint, Side.HARMONYD, details=details)


def _wrong(case: Case, *, listening: bool, holder_is_known: bool) -> tuple[bool, str, str]:
    """Whether it keeps a C-MOVE from working for certain, what, and what to do."""
    port, daemon = case.options.incoming_store_port, case.daemon
    runs = f"the harmonyd that runs (pid {daemon})"
    if listening and daemon is not None and holder_is_known:
        return True, f"{holder_text(port)}: it is not {runs}", "Change the one that is wrong, and restart harmonyd."
    if listening:
        hint = "Run this as harmonyd's user, and while harmonyd runs: then it shows whether the port is its own."
        return False, f"somebody listens on port {port}, and not a harmonyd that we see", hint
    if daemon is None:
        return False, f"nobody listens on port {port}, and no harmonyd runs that we see", "Start it, and ask again."
    if case.options.incoming_store_port_set and case.options.store_scp != "transient":
        return True, f"{runs} does not listen on port {port}", "Ask /readyz why, or restart it after a change."
    text = f"{runs} does not listen on port {port} yet: it does from the first C-MOVE on"
    return False, text, "Set incoming_store_port of the backend, then it listens from its start."
