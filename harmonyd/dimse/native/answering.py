"""The services of an SCP of ours beside C-ECHO and C-STORE. Another one is another line here."""

from __future__ import annotations

from collections.abc import Mapping

from harmonyd.dimse.native import core
from harmonyd.dimse.native.exchange import Means
from harmonyd.dimse.native.find_scp import Finding
from harmonyd.dimse.native.get_scp import Getting
from harmonyd.dimse.native.inbound import Offered
from harmonyd.dimse.native.move_scp import Moving
from harmonyd.dimse.native.normalized_scp import Normalizing
from harmonyd.dimse.normalized import PERFORMED_STEP, PUSH_MODEL
from harmonyd.dimse.serving import COMMIT, FIND, GET, MOVE, REPORT, STEPS, Handler


def services_for(means: Means, handler: Handler | None) -> Mapping[int, Offered]:
    """By Command Field (0000,0100) of the request."""
    if handler is None:
        return {}
    push_model = Normalizing(means.reactor, handler, PUSH_MODEL)
    steps = Normalizing(means.reactor, handler, PERFORMED_STEP)
    return {
        core.CommandField.C_FIND_RQ: (FIND, Finding(handler)),
        core.CommandField.C_GET_RQ: (GET, Getting(means, handler)),
        core.CommandField.C_MOVE_RQ: (MOVE, Moving(means, handler)),
        core.CommandField.N_ACTION_RQ: (COMMIT, push_model),
        core.CommandField.N_EVENT_REPORT_RQ: (REPORT, push_model),
        core.CommandField.N_CREATE_RQ: (STEPS, steps),
        core.CommandField.N_SET_RQ: (STEPS, steps),
    }
