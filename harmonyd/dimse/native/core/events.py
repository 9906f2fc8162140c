"""What ``Association.receive()`` tells its driver."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from harmonyd.dimse.native.core.commands import Command
from harmonyd.dimse.native.core.contexts import Contexts
from harmonyd.dimse.native.core.items import UserInformation
from harmonyd.dimse.native.core.pdu import AssociateRequest


@dataclass(frozen=True, slots=True)
class Requested:
    """Acceptor: an A-ASSOCIATE-RQ that can be answered with ``accept()`` or ``reject()``."""

    request: AssociateRequest


@dataclass(frozen=True, slots=True)
class Accepted:
    """Requestor: the association stands. Look into ``contexts``: perhaps none was accepted."""

    contexts: Contexts
    peer_max_pdu: int
    """As the peer said; 0 is no limit."""
    user_information: UserInformation


@dataclass(frozen=True, slots=True)
class Rejected:
    """The association was rejected (PS3.8 table 9-21). The end.

    By the peer; or, when ``by_peer`` is false, by us as service provider before anybody was asked: the request has
    another protocol version or application context than DICOM's only ones.
    """

    result: int
    source: int
    reason: int
    text: str
    """For people, in words that DCMTK uses too."""
    by_peer: bool = True


@dataclass(frozen=True, slots=True)
class CommandReceived:
    """A command set; if ``command.has_data`` its data set follows in ``DataReceived``."""

    context_id: int
    command: Command


@dataclass(frozen=True, slots=True)
class DataReceived:
    """A piece of the data set of the last command in this context, as it came: any length, in the last one even 0.

    ``fragment`` is a view of what was given to ``receive()`` wherever possible. It stays valid as long as that does;
    copy it if that buffer is written to again.
    """

    context_id: int
    fragment: bytes | memoryview
    last: bool


@dataclass(frozen=True, slots=True)
class ReleaseRequested:
    """The peer wants to end the association: finish, then ``respond_release()``."""


@dataclass(frozen=True, slots=True)
class Released:
    """The ``release()`` is complete. The end. In a collision the peer's release was answered, too."""


@dataclass(frozen=True, slots=True)
class Aborted:
    """A-ABORT. The end. By the peer, or by us because of what the peer sent: ``text`` says what."""

    source: int
    reason: int
    text: str
    by_peer: bool


@dataclass(frozen=True, slots=True)
class ConnectionLost:
    """The peer closed the transport connection, or it broke, before release or abort. The end."""


Event: TypeAlias = (
    Requested
    | Accepted
    | Rejected
    | CommandReceived
    | DataReceived
    | ReleaseRequested
    | Released
    | Aborted
    | ConnectionLost
)
