"""A C-ECHO over a blocking socket, for a program that has no reactor."""

from __future__ import annotations

from harmonyd.dimse.engine import RemoteNode
from harmonyd.dimse.native import names
from harmonyd.dimse.native.blocking import BlockingAssociation, connected


def ping(remote: RemoteNode) -> None:
    """Ask a node for a C-ECHO. Blocking, for at most its connect timeout and twice its association timeout.

    Raises what ``Engine.echo`` raises.
    """
    proposed = [(names.VERIFICATION, names.UNCOMPRESSED)]
    with BlockingAssociation(connected(remote), remote, proposed) as association:
        association.echo()
        association.release()
