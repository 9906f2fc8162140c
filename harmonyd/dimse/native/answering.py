"""The services of an SCP of ours beside C-ECHO and C-STORE. Another one is another line here."""

from __future__ import annotations

from collections.abc import Mapping

from harmonyd.dimse.native import core
from harmonyd.dimse.native.exchange import Means
from harmonyd.dimse.native.find_scp import Finding
from harmonyd.dimse.native.get_scp import Getting
from harmonyd.dimse.native.inbound import Offered
from harmonyd.dimse.native.move_scp import Moving
from harmonyd.dimse.serving import FIND, GET, MOVE, Handler


def services_for(means: Means, handler: Handler | None) -> Mapping[int, Offered]:
    """By Command Field (0000,0100) of the request."""
    if handler is None:
        return {}
    return {
        core.CommandField.C_FIND_RQ: (FIND, Finding(handler)),
        core.CommandField.C_GET_RQ: (GET, Getting(means, handler)),
        core.CommandField.C_MOVE_RQ: (MOVE, Moving(means, handler)),
    }
