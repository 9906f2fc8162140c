"""The remote node of a dicom backend, as the engines know it."""

from __future__ import annotations

from harmonyd.config.model import DicomBackendOptions
from harmonyd.dimse.engine import RemoteNode


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
