"""The seam between the gateway and whatever speaks DIMSE: ``Engine`` and the values that cross it.

``dimse.dcmtk`` implements it with supervised DCMTK programs, ``dimse.native`` in-process. Every operation takes an
``OperationContext`` with its deadline; cancelling the Deferred that awaits it, or ``aclose()`` on its stream, ends the
association.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from harmonyd.acknowledge import PipelineAnswers
from harmonyd.identity import Credentials
from harmonyd.progress import UNTIMED, UNWATCHED, Progress, Steps
from harmonyd.subject import PeerCertificate
from harmonyd.tls import TlsClient, TlsServer
from harmonyd.tracing import Trace

if TYPE_CHECKING:
    from pydicom import Dataset

    from harmonyd.dimse.serving import Handler
    from harmonyd.dimse.waiting import AssociationSlots


class QueryLevel(StrEnum):
    """Query/Retrieve Level (0008,0052), PS3.4 section C.3."""

    PATIENT = "PATIENT"
    STUDY = "STUDY"
    SERIES = "SERIES"
    IMAGE = "IMAGE"


class QueryModel(StrEnum):
    """Query/Retrieve Information Model, PS3.4 sections C.3.1 and C.3.2, or that of a worklist, section K.6."""

    PATIENT_ROOT = "patient"
    STUDY_ROOT = "study"
    WORKLIST = "worklist"
    """Modality Worklist: C-FIND only, and without levels."""


ROOTS = (QueryModel.PATIENT_ROOT, QueryModel.STUDY_ROOT)
"""The models that have levels, and can be retrieved from."""


@dataclass(frozen=True, slots=True)
class RemoteNode:
    """A remote application entity and how to talk to it. Validated by the configuration."""

    name: str
    """The backend's name, for messages and logs."""
    aet: str
    host: str
    port: int
    local_aet: str
    connect_timeout_secs: float = 30.0
    association_timeout_secs: float = 300.0
    """Silence allowed in ACSE and between DIMSE messages."""
    max_pdu: int = 65536
    max_associations: int = 10
    """That we may have open to it at once, idle ones included."""
    idle_secs: float = 5.0
    """How long an association stays open that nobody uses; 0: not at all."""
    tls: TlsClient | None = None
    """None: connections are not secured."""
    user_identity: Credentials | None = None
    """The native engine's only."""


@dataclass(frozen=True, slots=True)
class MoveReceiver:
    """Who receives what a C-MOVE delivers."""

    store_scp: str
    """"persistent", "per-association", "transient" or "native"."""
    destination_aet: str
    port: int
    tls: TlsServer | None = None
    """None: not secured. Never with "persistent" or "transient", where a program of DCMTK's listens."""


@dataclass(frozen=True, slots=True)
class Query:
    """A validated identifier: ``dataset`` holds the keys, with Query/Retrieve Level set and text in Unicode."""

    level: QueryLevel
    """PATIENT for a worklist, which has none."""
    model: QueryModel
    dataset: Dataset
    received: Received | None = None
    """The identifier as somebody sent it to us: it goes on as it is. ``dataset`` has its level and unique keys."""


@dataclass(frozen=True, slots=True)
class OperationContext:
    """What every operation gets beside its arguments."""

    id: str
    """UUID in hex; names the artifact folder (``dcmtk_get_<id>``) and the operation in logs."""
    request_id: str
    """Correlation id of the request that asked for it."""
    deadline: float
    """Seconds on the reactor's clock; the operation is ended and ``DeadlinePassed`` raised when it passes."""
    max_results: int = 10000
    """C-FIND only: more matches are not passed on, and the outcome says so."""
    as_received: bool = False
    """C-FIND only: matches come undecoded where the engine has them so."""
    storage: Path | None = None
    """Where the artifact folder goes; None: the engine's own storage path."""
    slots: AssociationSlots | None = None
    """The engine holds one slot while it has an association open for this operation."""
    progress: Progress = UNWATCHED
    steps: Steps = UNTIMED
    trace: Trace | None = None
    """Its span."""


@dataclass(frozen=True, slots=True)
class SubOperations:
    """Counters of a final C-GET or C-MOVE response (PS3.7 section 9.1.3); None: the node omitted it."""

    completed: int | None = None
    failed: int | None = None
    warning: int | None = None
    remaining: int | None = None


@dataclass(slots=True)
class Outcome:
    """The truth about an operation, filled in when its stream ends."""

    status: int | None = None
    """Final DIMSE status, 16 bit."""
    status_text: str = ""
    comment: str | None = None
    complete: bool = True
    incomplete_reason: str | None = None
    suboperations: SubOperations | None = None
    warnings: list[str] = field(default_factory=list)
    """For people: objects put aside, counters that contradict each other."""
    failed_uids: tuple[str, ...] = ()
    """Failed SOP Instance UID List (0008,0058) of a C-GET or C-MOVE."""

    def incomplete(self, reason: str) -> None:
        """Mark the operation incomplete; the first reason stays first, later ones are appended."""
        self.complete = False
        self.incomplete_reason = f"{self.incomplete_reason}; {reason}" if self.incomplete_reason else reason


@dataclass(frozen=True, slots=True)
class Match:
    """One pending C-FIND response."""

    json: bytes
    """In the DICOM JSON Model; empty where ``OperationContext.as_received`` asked for ``received``."""
    received: Received | None = None


@dataclass(frozen=True, slots=True)
class Received:
    """A data set as the node sent it."""

    data: bytes
    transfer_syntax_uid: str
    status: int = 0xFF00
    """Of the pending response: 0xFF01 when optional keys were not supported."""


@dataclass(frozen=True, slots=True)
class Instance:
    """One received object: a complete Part 10 file, checked to its last element. ``data_set_at``: 0 when not noted."""

    path: Path
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    size_bytes: int
    study_instance_uid: str = ""
    """Empty where the data set has none."""
    series_instance_uid: str = ""
    patient_id: str = field(default="", repr=False)
    data_set_at: int = 0


@dataclass(frozen=True, slots=True)
class Association:
    """An inbound association, as far as its receiver knows it; ``certificate`` is what the caller proved to hold."""

    id: str
    """UUID in hex; joins log lines about what came over it."""
    called_aet: str
    calling_aet: str
    peer: str = ""
    """IP address of the caller; empty where the receiver cannot know it (a storescp that listens itself)."""
    certificate: PeerCertificate | None = None


@dataclass(frozen=True, slots=True)
class Arrival:
    """One object that was received: the file is complete."""

    instance: Instance
    association: Association
    move_originator_aet: str = ""
    """Move Originator Application Entity Title (0000,1030); empty where there was none, or it cannot be known."""
    flushed: bool = False
    """The file and its name in its folder are durable already."""


@dataclass(frozen=True, slots=True)
class StoreResult:
    """The outcome of one C-STORE sub-request; ``status`` None when the peer gave no answer for this instance."""

    sop_class_uid: str
    sop_instance_uid: str
    status: int | None
    status_text: str
    study_instance_uid: str = ""
    """Empty where nobody asked for it."""
    series_instance_uid: str = ""
    comment: str | None = None
    """Error Comment (0000,0902) of the node, which may name a patient."""


@dataclass(frozen=True, slots=True)
class StoreScpConfig:
    """A receiver for a dicom endpoint."""

    name: str
    """Name of the endpoint; the child is ``storescp:NAME``."""
    local_aet: str
    bind_addr: str
    port: int
    max_pdu: int = 65536
    association_timeout_secs: float = 300.0
    store_scp: str = "persistent"
    """"persistent", "per-association" or "native"; what follows is not enforced by the first."""
    allowed_calling_aets: tuple[str, ...] = ()
    """Empty: any."""
    max_associations: int = 50
    max_associations_per_peer: int = 20
    """From one IP address."""
    acknowledge: PipelineAnswers | None = None
    """None: what the handler has taken is answered with Success. The native engine's only."""
    tls: TlsServer | None = None
    """None: not secured. Never with "persistent" or "transient", where a program of DCMTK's listens."""
    services: tuple[str, ...] = ("store",)
    """Beside C-ECHO: "store", "find", "get", "move". All but the first are the native engine's only."""


class Obstacle(StrEnum):
    """What kept an object from being delivered."""

    REFUSED = "refused"
    """Middleware."""
    FAILED = "failed"
    """A backend does not take this object."""
    AWAY = "away"
    """A backend cannot be reached, or used, now."""


class NotDelivered(Exception):
    """The answer to ``ObjectHandler.deliver_now``."""

    def __init__(self, obstacle: Obstacle, reason: str, status: int | None = None) -> None:
        """``reason``: for people. ``status``: what a remote node answered to its C-STORE, where one did."""
        super().__init__(reason)
        self.obstacle = obstacle
        self.reason = reason
        self.status = status


ItemT = TypeVar("ItemT", covariant=True)


class OperationStream(Protocol[ItemT]):
    """Items as they arrive; after the last one ``outcome`` is final. Iteration raises when the operation fails."""

    outcome: Outcome
    folder: Path | None
    """The artifact folder of the operation, where it has one."""
    debug: dict[str, object] | None
    """What the tool was given and said (args, stdout, stderr, status), after the end."""

    def __aiter__(self) -> AsyncIterator[ItemT]: ...

    async def aclose(self) -> None:
        """End the operation if it still runs; returns when its processes are gone. Safe to call twice."""


class Admission(Protocol):
    """Whether more can be received at all: room on the disk, and in the queue."""

    def refusal(self) -> str | None:
        """Why no association may be accepted now, for people; None when it may. Cheap, never blocks."""

    def must_end(self) -> bool:
        """Room runs out under way: associations that bring objects have to end before it is gone."""
        ...

    def subscribe(self, changed: Callable[[], None]) -> Callable[[], None]:
        """Have ``changed`` called whenever one of the two answers changes; returns what ends that, twice too."""
        ...


class StoreScp(Protocol):
    """A running receiver for inbound C-STORE."""

    async def start(self) -> None:
        """Offer what an earlier run left in the receiving folders, then receive."""
        ...

    async def stop(self) -> None: ...

    async def pause(self) -> None:
        """Receive nothing any more; returns when the port is free. What was received is still offered."""
        ...

    async def resume(self, config: StoreScpConfig) -> None:
        """Receive again, as ``config`` says from now on; its name must be the old one."""
        ...

    async def taken(self) -> None:
        """Return when the handler has taken all that was received."""
        ...


class ObjectHandler(Protocol):
    """Takes over received files, a batch at a time.

    When it returns, each object is durable and no longer where it was. When it raises, what still lies there is offered
    again later.
    """

    async def __call__(self, arrivals: Sequence[Arrival]) -> None: ...

    async def deliver_now(self, arrival: Arrival) -> None:
        """Pass one object through the pipeline, once; return when all who are to have it have it.

        It is not taken over: its file stays where it is. Raises ``NotDelivered``. Cancelled, it ends what is under way.
        """
        ...

    async def damaged(self, path: Path, association: Association, reason: str) -> None:
        """An acknowledged object is not whole: put the file aside, and raise the alarm."""
        ...


class Engine(Protocol):
    """Performs DIMSE operations."""

    async def echo(self, remote: RemoteNode, op: OperationContext) -> Outcome:
        """C-ECHO (PS3.7 section 9.1.5). Raises a ``DimseError`` unless the node answered Success."""
        ...

    def find(self, remote: RemoteNode, query: Query, op: OperationContext) -> OperationStream[Match]:
        """C-FIND (PS3.4 section C.4.1)."""
        ...

    def get(self, remote: RemoteNode, query: Query, op: OperationContext) -> OperationStream[Instance]:
        """C-GET (PS3.4 section C.4.3)."""
        ...

    def move(
        self, remote: RemoteNode, receiver: MoveReceiver, query: Query, op: OperationContext
    ) -> OperationStream[Instance]:
        """C-MOVE to our own receiver (PS3.4 section C.4.2); yields only what was asked for."""
        ...

    def store(
        self, remote: RemoteNode, files: Sequence[Path], op: OperationContext
    ) -> OperationStream[StoreResult]:
        """C-STORE of Part 10 files, one result each (PS3.4 Annex B)."""
        ...

    def store_scp(
        self, config: StoreScpConfig, handler: ObjectHandler, admission: Admission, questions: Handler | None = None
    ) -> StoreScp:
        """A receiver that hands complete objects to ``handler``, and accepts nothing while ``admission`` refuses.

        ``questions`` answers C-FIND, C-GET and C-MOVE, where ``config`` offers them.
        """
        ...

    async def open_receiver(self, receiver: MoveReceiver) -> None:
        """Start the receiver for C-MOVE deliveries now instead of with the first move."""


class EnginesByName(Protocol):
    """The engines there are: "dcmtk", "native"."""

    def __getitem__(self, name: str) -> Engine: ...
