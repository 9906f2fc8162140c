"""What crosses the seam of an engine for DIMSE-N: a request for a managed object, and its answer (PS3.7 chapter 10)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

from harmonyd.dimse.engine import Association, OperationContext, RemoteNode

EVENT, ACTION, CREATE, SET = "N-EVENT-REPORT", "N-ACTION", "N-CREATE", "N-SET"
"""Operations."""
PUSH_MODEL, PUSH_MODEL_INSTANCE = "1.2.840.10008.1.20.1", "1.2.840.10008.1.20.1.1"
"""Storage Commitment Push Model SOP Class, and its well-known instance (PS3.4 section J.3)."""
PERFORMED_STEP = "1.2.840.10008.3.1.2.3.3"
"""Modality Performed Procedure Step SOP Class (PS3.4 section F.7)."""


@dataclass(frozen=True, slots=True)
class NormalizedRequest:
    """One request; which of the two sides sends it depends on the operation."""

    operation: str
    """EVENT, ACTION, CREATE or SET."""
    sop_class_uid: str
    sop_instance_uid: str
    """Empty for an N-CREATE that leaves the choice to the performer."""
    data: bytes
    """The data set; empty where there is none."""
    transfer_syntax_uid: str
    type_id: int | None = None
    """Event Type ID or Action Type ID."""


@dataclass(frozen=True, slots=True)
class NormalizedAnswer:
    """The response, without its data set: nobody here has a use for one."""

    status: int
    comment: str = ""
    sop_instance_uid: str = ""
    """Of what was created, where the performer chose it."""


Perform: TypeAlias = Callable[[NormalizedRequest], Awaitable[NormalizedAnswer]]
"""Has a request answered."""


@dataclass(frozen=True, slots=True)
class NormalizedAsked:
    """A request that a caller sent us."""

    association: Association
    message_id: int
    request: NormalizedRequest
    ask_back: Perform
    """Sends the caller a request of ours over its own association; raises ``Unanswered`` when that has ended."""

    @property
    def service(self) -> str:
        """What the configuration calls it: "commit" or "mpps"."""
        return "commit" if self.request.sop_class_uid == PUSH_MODEL else "mpps"

    @property
    def operation(self) -> str:
        """The service; see ``serving.Asked``."""
        return self.service

    @property
    def name(self) -> str:
        """For people."""
        return self.request.operation


class Unanswered(Exception):
    """A request of ours over an association of somebody else's came to nothing."""


@dataclass(frozen=True, slots=True)
class Listening:
    """What is to happen with N-EVENT-REPORTs of a node over an association of ours, after our request."""

    hear: Perform
    secs: float
    """How long the association stays open for them."""
    is_over: Callable[[], bool]
    """Whether there is nothing more to wait for; asked after each of them."""


@runtime_checkable
class NormalizedEngine(Protocol):
    """An engine that can do it."""

    async def normalized(
        self,
        remote: RemoteNode,
        request: NormalizedRequest,
        op: OperationContext,
        *,
        as_scp: bool = False,
        listening: Listening | None = None,
        answered: Callable[[NormalizedAnswer], None] = lambda answer: None,
    ) -> NormalizedAnswer:
        """Send one request, and return what the node answers, whatever status that has.

        ``as_scp``: in the role of SCP, for an N-EVENT-REPORT (PS3.7 section D.3.3.4). ``listening``: hear what else
        comes before the association ends; ``answered`` is called before that. Raises a ``DimseError``, ``Unavailable``
        and ``DeadlinePassed``.
        """
        ...
