"""Remote nodes as the engines know them: that of a dicom backend, and those that ask us for something."""

from __future__ import annotations

from harmonyd.config.asking import MoveDestination
from harmonyd.config.model import DicomBackendOptions
from harmonyd.dimse.engine import MoveReceiver, RemoteNode


def remote_node(name: str, options: DicomBackendOptions) -> RemoteNode:
    """``name``: the backend's."""
    return RemoteNode(
        name,
        options.aet,
        options.host,
        options.port,
        options.local_aet,
        options.connect_timeout_secs,
        options.association_timeout_secs,
        options.max_pdu,
        options.max_associations,
        options.association_idle_secs,
        options.tls,
        options.user_identity,
    )


_IDLE_SECS = 0.5
"""Between two C-MOVEs. Some receivers serve one association at a time: others wait for as long as ours is open."""
_MAX_PDU = 131072


def peer_node(aet: str, known: MoveDestination, our_aet: str) -> RemoteNode:
    """A node of ``move_destinations``."""
    return RemoteNode(
        f"move destination {aet}",
        aet,
        known.host,
        known.port,
        our_aet,
        known.connect_timeout_secs,
        known.association_timeout_secs,
        _MAX_PDU,
        known.max_associations,
        _IDLE_SECS,
        known.tls,
    )


def move_receiver(options: DicomBackendOptions) -> MoveReceiver:
    """Who receives what is moved for a backend."""
    return MoveReceiver(
        options.store_scp, options.move_destination_aet, options.incoming_store_port, options.incoming_store_tls
    )
