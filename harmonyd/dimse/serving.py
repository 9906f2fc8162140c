"""What is asked of an SCP of ours, beside C-STORE: the seam between an engine, which speaks DIMSE, and who answers.

An engine reads the request and its identifier, sends what a ``Handler`` yields, and closes it when the caller cancels,
leaves, or does not take the answer. It knows nothing of pipelines; a handler knows nothing of associations.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Protocol

from harmonyd.dimse.engine import Association, Instance, QueryModel, RemoteNode
from harmonyd.dimse.normalized import NormalizedAnswer, NormalizedAsked
from harmonyd.dimse.part10 import InstanceHeader
from harmonyd.dimse.status import PENDING

FIND, GET, MOVE, STORE = "find", "get", "move", "store"
COMMIT, STEPS = "commit", "mpps"
SERVICES = (STORE, FIND, GET, MOVE, COMMIT, STEPS)
"""What an endpoint may offer beside C-ECHO."""
REPORT = "report"
"""N-EVENT-REPORTs of a node about what it was asked to commit: taken wherever questions are answered."""


class NotServed(Exception):
    """The final status of an operation that is not Success, and its Error Comment (PS3.7 section C.4.2)."""

    def __init__(self, status: int, comment: str = "", *, failed: int = 0, is_quoted: bool = False) -> None:
        """``comment``: for people; an engine cuts it to the 64 characters of an LO.

        ``is_quoted``: a remote node wrote it, so it may name a patient and is not for the log.

        ``failed``: sub-operations that failed behind us.
        """
        super().__init__(comment)
        self.status = status
        self.comment = comment
        self.is_quoted = is_quoted
        self.failed = failed


@dataclass(frozen=True, slots=True)
class Asked:
    """A C-FIND, C-GET or C-MOVE request."""

    operation: str
    """FIND, GET or MOVE."""
    association: Association
    message_id: int
    model: QueryModel
    identifier: bytes
    transfer_syntax_uid: str
    """Of the identifier, and of every data set in the answer."""
    destination_aet: str = ""
    """Move Destination (0000,0600)."""


    @property
    def name(self) -> str:
        """For people."""
        return f"C-{self.operation.upper()}"


@dataclass(frozen=True, slots=True)
class Pending:
    """One match of a C-FIND, encoded in the transfer syntax of the request."""

    data: bytes
    status: int = PENDING


class Retrieval(Protocol):
    """What a C-GET or C-MOVE brings, as it arrives. The file of an instance is there until the next is asked for."""

    def __aiter__(self) -> AsyncIterator[Instance]:
        """Iterate once. Raises ``NotServed``."""
        ...

    @property
    def total(self) -> int | None:
        """Instances that there are to be sent, as far as is known by now; None: not at all."""
        ...

    @property
    def missed(self) -> int:
        """Those of them that will not come, after the end."""
        ...

    @property
    def missed_uids(self) -> tuple[str, ...]:
        """SOP Instance UIDs of these, where they are known."""
        ...

    @property
    def doubt(self) -> str:
        """Why there may be more than what was found to be sent, for people; "" where that is all."""
        ...

    def told(self, header: InstanceHeader, problem: str) -> None:
        """An object was sent on, or was not: ``problem`` says why."""
        ...

    async def aclose(self) -> None:
        """End it, if it still runs. Safe to call twice."""
        ...


class Handler(Protocol):
    """Answers questions of callers."""

    def find(self, asked: Asked) -> AsyncGenerator[Pending, None]:
        """Matches as they come. Raises ``NotServed``; closing it ends the operation behind."""
        ...

    async def retrieve(self, asked: Asked) -> Retrieval:
        """Begin a C-GET or C-MOVE. Raises ``NotServed``."""
        ...

    def destination(self, asked: Asked) -> RemoteNode:
        """Where a C-MOVE goes. Raises ``NotServed`` when nobody knows it."""
        ...

    async def normalized(self, asked: NormalizedAsked) -> NormalizedAnswer:
        """Answer a DIMSE-N request. Raises ``NotServed``."""
        ...

