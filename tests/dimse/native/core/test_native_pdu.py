"""PDUs, byte for byte, with pynetdicom's encoder and decoder as the second opinion."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from native_strategies import UIDS, accepts, requests
from pynetdicom import pdu as theirs
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    AsynchronousOperationsWindowNegotiation,
    ImplementationClassUIDNotification,
    ImplementationVersionNameNotification,
    MaximumLengthNotification,
    SCP_SCU_RoleSelectionNegotiation,
    SOPClassCommonExtendedNegotiation,
    SOPClassExtendedNegotiation,
    UserIdentityNegotiation,
)
from pynetdicom.presentation import PresentationContext

from harmonyd.dimse.native.core import (
    AssociateAccept,
    AssociateRequest,
    ProtocolViolation,
    UserIdentity,
    UserInformation,
    pdu,
)

SETTINGS = settings(max_examples=150, deadline=None)


def _user_information(info: UserInformation) -> list[Any]:
    """Pynetdicom's primitives of it, in the order in which we write them."""
    length, class_uid, version = (
        MaximumLengthNotification(),
        ImplementationClassUIDNotification(),
        ImplementationVersionNameNotification(),
    )
    length.maximum_length_received = info.max_pdu
    class_uid.implementation_class_uid = info.implementation_class_uid
    version.implementation_version_name = info.implementation_version_name
    found: list[Any] = [length, class_uid]
    if info.asynchronous_operations:
        window = AsynchronousOperationsWindowNegotiation()
        window.maximum_number_operations_invoked = info.asynchronous_operations.invoked
        window.maximum_number_operations_performed = info.asynchronous_operations.performed
        found.append(window)
    for role in info.roles:
        each = SCP_SCU_RoleSelectionNegotiation()
        each.sop_class_uid, each.scu_role, each.scp_role = role.sop_class_uid, role.scu, role.scp
        found.append(each)
    found.append(version)
    for extended in info.extended:
        item = SOPClassExtendedNegotiation()
        item.sop_class_uid = extended.sop_class_uid
        item.service_class_application_information = extended.information
        found.append(item)
    for common in info.common_extended:
        negotiation = SOPClassCommonExtendedNegotiation()
        negotiation.sop_class_uid = common.sop_class_uid
        negotiation.service_class_uid = common.service_class_uid
        negotiation.related_general_sop_class_identification = list(common.related_sop_class_uids)
        found.append(negotiation)
    if info.user_identity:
        identity = UserIdentityNegotiation()
        identity.user_identity_type = info.user_identity.type
        identity.positive_response_requested = info.user_identity.response_requested
        identity.primary_field = info.user_identity.primary
        identity.secondary_field = info.user_identity.secondary
        found.append(identity)
    return found


@SETTINGS
@given(requests())
def test_a_request_is_what_pynetdicom_would_send(request_: AssociateRequest) -> None:
    """An A-ASSOCIATE-RQ made of the same values by pynetdicom has the same bytes, and is read as the same."""
    primitive = A_ASSOCIATE()
    primitive.application_context_name = request_.application_context
    primitive.calling_ae_title, primitive.called_ae_title = request_.calling_aet, request_.called_aet
    contexts = []
    for proposed in request_.contexts:
        context = PresentationContext()
        context.context_id = proposed.id
        context.abstract_syntax = proposed.abstract_syntax
        context.transfer_syntax = list(proposed.transfer_syntaxes)
        contexts.append(context)
    primitive.presentation_context_definition_list = contexts
    primitive.user_information = _user_information(request_.user_information)
    other = theirs.A_ASSOCIATE_RQ()
    other.from_primitive(primitive)
    encoded = other.encode()
    assert request_.encode() == encoded
    assert AssociateRequest.decode(encoded[6:]) == request_


@SETTINGS
@given(accepts())
def test_pynetdicom_reads_an_accept_and_writes_it_again(accept: AssociateAccept) -> None:
    """An A-ASSOCIATE-AC that pynetdicom has decoded is encoded to the same bytes, and is read as the same."""
    encoded = accept.encode()
    other = theirs.A_ASSOCIATE_AC()
    other.decode(encoded)
    assert other.encode() == encoded
    assert [item.result for item in other.presentation_context] == [context.result for context in accept.contexts]
    assert AssociateAccept.decode(encoded[6:]) == accept


@given(st.sampled_from([(1, 1, 7), (1, 2, 2), (2, 3, 1), (2, 3, 2)]))
def test_a_rejection_is_what_pynetdicom_would_send(values: tuple[int, int, int]) -> None:
    """An A-ASSOCIATE-RJ, byte for byte."""
    encoded = pdu.AssociateReject(*values).encode()
    other = theirs.A_ASSOCIATE_RJ()
    other.decode(encoded)
    assert other.encode() == encoded
    assert (other.result, other.source, other.reason_diagnostic) == values
    assert pdu.decode(3, encoded[6:]) == pdu.AssociateReject(*values)


@pytest.mark.parametrize(
    ("ours", "other"),
    [
        (pdu.ReleaseRequest(), theirs.A_RELEASE_RQ()),
        (pdu.ReleaseResponse(), theirs.A_RELEASE_RP()),
        (pdu.Abort(2, 6), theirs.A_ABORT_RQ()),
    ],
)
def test_the_small_pdus_are_what_pynetdicom_would_send(ours: pdu.Pdu, other: Any) -> None:
    """A-RELEASE-RQ, A-RELEASE-RP and A-ABORT, byte for byte."""
    encoded = ours.encode()
    other.decode(encoded)
    assert other.encode() == encoded
    assert pdu.decode(encoded[0], encoded[6:]) == ours


IDS = st.integers(0, 127).map(lambda number: 2 * number + 1)
PDVS = st.builds(pdu.Pdv, IDS, st.binary(max_size=50), st.booleans(), st.booleans())


@given(st.lists(PDVS, min_size=1, max_size=6))
def test_p_data_is_what_pynetdicom_would_send(pdvs: list[pdu.Pdv]) -> None:
    """A P-DATA-TF with several PDVs, byte for byte."""
    encoded = pdu.PData(tuple(pdvs)).encode()
    other = theirs.P_DATA_TF()
    other.decode(encoded)
    assert other.encode() == encoded
    assert pdu.decode(4, encoded[6:]) == pdu.PData(tuple(pdvs))


@SETTINGS
@given(requests(), st.integers(0x60, 0xFF), st.binary(max_size=20))
def test_items_that_nobody_knows_are_kept(request_: AssociateRequest, kind: int, content: bytes) -> None:
    """An unknown sub-item of the user information is found in ``others``; it disturbs nothing."""
    values = {name: getattr(request_.user_information, name) for name in UserInformation.__slots__}
    info = UserInformation(**(values | {"others": ((kind, content),)}))
    changed = AssociateRequest(request_.called_aet, request_.calling_aet, request_.contexts, info)
    assert AssociateRequest.decode(changed.encode()[6:]).user_information == info


@SETTINGS
@given(requests(), st.data())
def test_a_request_that_is_cut_is_refused(request_: AssociateRequest, data: st.DataObject) -> None:
    """Every A-ASSOCIATE-RQ that ends too early is a violation, or a request with fewer items; never another error."""
    body = request_.encode()[6:]
    cut = body[: data.draw(st.integers(0, len(body) - 1))]
    try:
        decoded = AssociateRequest.decode(cut)
    except ProtocolViolation:
        return
    assert len(decoded.contexts) <= len(request_.contexts)


def _body(*items: bytes) -> bytes:
    return pdu.AssociateRequest("SCP", "SCU", ()).encode()[6:74] + b"".join(items)


APPLICATION = b"\x10\0\0\x151.2.840.10008.3.1.1.1"
CONTEXT = b"\x20\0\0\x10\x01\0\0\0\x30\0\0\x01a\x40\0\0\x03b.c"


@pytest.mark.parametrize(
    ("items", "complaint"),
    [
        ((CONTEXT,), "0 application context names"),
        ((APPLICATION, APPLICATION, CONTEXT), "2 application context names"),
        ((APPLICATION,), "0 presentation contexts"),
        ((APPLICATION, CONTEXT, CONTEXT), "id 1 twice"),
        ((APPLICATION, CONTEXT.replace(b"\x10\x01", b"\x10\x02")), "even id 2"),
        ((APPLICATION, b"\x20\0\0\x02\x01\0"), "too short"),
        ((APPLICATION, CONTEXT.replace(b"\x40", b"\x41")), "1 abstract and 0 transfer"),
        ((APPLICATION, CONTEXT.replace(b"\x03b.c", b"\x04b.c")), "goes beyond the end"),
        ((APPLICATION, CONTEXT, b"\x50\0\0"), "ends in the header"),
        ((APPLICATION, CONTEXT, b"\x50\0\0\x05\x51\0\0\x01a"), "maximum length has 1 bytes"),
        ((APPLICATION, CONTEXT, b"\x50\0\0\x05\x53\0\0\x01a"), "window has 1 bytes"),
        ((APPLICATION, CONTEXT, b"\x50\0\0\x06\x54\0\0\x02\0\x09"), "role selection is too short"),
        ((APPLICATION, CONTEXT, b"\x50\0\0\x06\x58\0\0\x02\x01\x01"), "user identity is too short"),
    ],
)
def test_what_is_wrong_with_a_request_is_said(items: tuple[bytes, ...], complaint: str) -> None:
    """Each mistake in the items of an A-ASSOCIATE-RQ has its own words."""
    with pytest.raises(ProtocolViolation, match=complaint):
        AssociateRequest.decode(_body(*items))


def test_a_request_with_no_user_information_is_read() -> None:
    """Without user information the peer is taken to receive what every peer can."""
    request_ = AssociateRequest.decode(_body(APPLICATION, CONTEXT))
    info = request_.user_information
    assert (info.max_pdu, info.implementation_class_uid, info.roles) == (16384, "", ())
    assert request_.contexts[0].transfer_syntaxes == ("b.c",)


@given(UIDS)
def test_padding_of_uids_means_nothing(uid: str) -> None:
    """A UID with a trailing NUL, which some senders add to make its length even, is the same UID."""
    text = uid.encode() + b"\0"
    inner = b"\x30\0" + len(text).to_bytes(2, "big") + text + b"\x40\0\0\x02\x61\0"
    context = b"\x20\0" + (len(inner) + 4).to_bytes(2, "big") + b"\x01\0\0\0" + inner
    request_ = AssociateRequest.decode(_body(APPLICATION, context))
    assert (request_.contexts[0].abstract_syntax, request_.contexts[0].transfer_syntaxes) == (uid, ("a",))


def test_secrets_are_not_shown() -> None:
    """The ``repr`` of a request, which may end up in a log, does not hold the user's password."""
    info = UserInformation(user_identity=UserIdentity(2, b"somebody", b"secret"))
    request_ = AssociateRequest("SCP", "SCU", (), info)
    assert "secret" not in repr(request_)


def test_an_ae_title_that_is_too_long_is_not_cut() -> None:
    """Our own mistakes are ``ValueError``."""
    with pytest.raises(ValueError, match="at most 16"):
        AssociateRequest("A" * 17, "SCU", ()).encode()
