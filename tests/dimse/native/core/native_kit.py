"""Two associations, each other's peer, without a connection between them."""

from __future__ import annotations

from harmonyd.dimse.native.core import (
    Answer,
    AssociateRequest,
    Association,
    Event,
    ProposedContext,
    Support,
    UserInformation,
    negotiate,
)

VERIFICATION = "1.2.840.10008.1.1"
CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
IMPLICIT_VR_LE, EXPLICIT_VR_LE = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
ECHO_ID, STORE_ID = 1, 3
SUPPORTED = {
    VERIFICATION: Support((IMPLICIT_VR_LE,)),
    CT_IMAGE: Support((EXPLICIT_VR_LE, IMPLICIT_VR_LE), requestor_scp=True),
}


def request(max_pdu: int = 16384) -> AssociateRequest:
    """Verification and CT, as an SCU asks for them."""
    contexts = (
        ProposedContext(ECHO_ID, VERIFICATION, (IMPLICIT_VR_LE,)),
        ProposedContext(STORE_ID, CT_IMAGE, (EXPLICIT_VR_LE, IMPLICIT_VR_LE)),
    )
    return AssociateRequest("SCP", "SCU", contexts, UserInformation(max_pdu, "1.2.3", "KIT"))


class Pair:
    """A requestor that has asked, and an acceptor that has not heard it yet."""

    def __init__(self, scu_max_pdu: int = 16384, scp_max_pdu: int = 16384) -> None:
        self.scu = Association.requestor(request(scu_max_pdu))
        self.scp = Association.acceptor(scp_max_pdu)
        self.scu.connected()

    @classmethod
    def established(cls) -> Pair:
        """An association that stands."""
        pair = cls()
        pair.to_scp()
        pair.accept()
        pair.to_scu()
        return pair

    def accept(self) -> None:
        """What is in ``SUPPORTED`` is accepted."""
        asked = self.scp.request
        assert asked is not None
        self.scp.accept(self.answer(asked))

    @staticmethod
    def answer(asked: AssociateRequest) -> Answer:
        """What is in ``SUPPORTED`` is accepted."""
        return negotiate(asked.contexts, SUPPORTED.get, asked.user_information.roles)

    def to_scp(self) -> list[Event]:
        """Carry over what the SCU has to send."""
        return self.scp.receive(self.scu.data_to_send())

    def to_scu(self) -> list[Event]:
        """Carry over what the SCP has to send."""
        return self.scu.receive(self.scp.data_to_send())

    def scp_event(self) -> Event:
        """The only event that what the SCU has to send is for the SCP."""
        (event,) = self.to_scp()
        return event

    def scu_event(self) -> Event:
        """The only event that what the SCP has to send is for the SCU."""
        (event,) = self.to_scu()
        return event
