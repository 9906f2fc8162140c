"""A backend under examination, and what is known of it so far."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from harmonyd.config.archive_model import DicomwebBackendOptions
from harmonyd.config.model import DicomBackendOptions
from harmonyd.dimse.engine import ROOTS, QueryModel, RemoteNode
from harmonyd.dimse.native import names
from harmonyd.dimse.native.blocking import BlockingAssociation, connected
from harmonyd.services.dicom.node import remote_node

SERVICES = (names.VERIFICATION, *(names.FIND[model] for model in ROOTS), *names.GET.values(), *names.MOVE.values())


@dataclass(slots=True)
class Case:
    """One dicom backend."""

    name: str
    options: DicomBackendOptions
    is_asked: bool
    """Queries and retrieves are asked of it; else it is only sent to."""
    remote: RemoteNode
    daemon: int | None = None
    """The pid of the harmonyd that runs with this configuration; None: none that we may see."""
    archive: DicomwebBackendOptions | None = None
    """It is a DICOMweb archive: what it has in common with a node is in ``options`` and ``remote``."""
    addresses: list[str] = field(default_factory=list)
    address: str | None = None
    """The one that is used: the first that took a connection."""
    our_address: str = "OUR-ADDRESS"
    """By which the PACS sees us, unless there is NAT in between."""
    association: BlockingAssociation | None = None

    def open(self) -> BlockingAssociation:
        """The association for the services, a new one if there is none any more. Raises as that does."""
        if self.association is not None and self.association.is_open:
            self.association.begin_step()
            return self.association
        self.close()
        proposed = [(uid, names.UNCOMPRESSED) for uid in SERVICES]
        self.association = BlockingAssociation(connected(self.remote, self.address), self.remote, proposed)
        return self.association

    def release(self) -> None:
        """End it in good order, so that a PACS with room for one association has it again."""
        if self.association is not None:
            self.association.release()
        self.association = None

    def close(self) -> None:
        """End it at once. Safe to call twice."""
        if self.association is not None:
            self.association.close()
        self.association = None

    @property
    def moves(self) -> bool:
        """Retrieves from it need C-MOVE."""
        return self.is_asked and self.options.dimse_retrieve_mode == "move"

    @property
    def model(self) -> QueryModel:
        """In which studies are asked for."""
        patient = self.options.query_model == QueryModel.PATIENT_ROOT.value
        return QueryModel.PATIENT_ROOT if patient else QueryModel.STUDY_ROOT


def case_of(
    name: str,
    options: DicomBackendOptions | DicomwebBackendOptions,
    limit_secs: float,
    *,
    is_asked: bool,
    daemon: int | None,
) -> Case:
    """``limit_secs``: at most so long is waited at once, and never longer than the backend's own timeouts say."""
    archive = options if isinstance(options, DicomwebBackendOptions) else None
    node = options.node if isinstance(options, DicomwebBackendOptions) else options
    remote = remote_node(name, node)
    if archive is not None and archive.url.startswith("https:"):
        remote = replace(remote, tls=archive.tls)
    remote = replace(
        remote,
        connect_timeout_secs=min(remote.connect_timeout_secs, limit_secs),
        association_timeout_secs=min(remote.association_timeout_secs, limit_secs),
    )
    return Case(name, node, is_asked, remote, daemon, archive)
