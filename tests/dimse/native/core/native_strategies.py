"""Values of the native core's kinds, for hypothesis."""

from __future__ import annotations

from hypothesis import strategies as st

from harmonyd.dimse.native.core import (
    AnsweredContext,
    AssociateAccept,
    AssociateRequest,
    AsynchronousOperations,
    Command,
    CommandField,
    CommonExtendedNegotiation,
    ExtendedNegotiation,
    ProposedContext,
    RoleSelection,
    UserIdentity,
    UserInformation,
)

U16 = st.integers(0, 0xFFFF)
UIDS = st.lists(st.integers(0, 10**8), min_size=2, max_size=6).map(lambda parts: ".".join(map(str, parts)))
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-."
NAMES = st.text(_LETTERS, min_size=1, max_size=16)
CONTEXT_IDS = st.lists(st.integers(0, 127).map(lambda number: 2 * number + 1), min_size=1, max_size=20, unique=True)

ROLES = st.lists(
    st.tuples(UIDS, st.sampled_from([(True, False), (False, True), (True, True)])).map(
        lambda role: RoleSelection(role[0], *role[1])
    ),
    max_size=4,
)
EXTENDED = st.lists(st.builds(ExtendedNegotiation, UIDS, st.binary(min_size=1, max_size=40)), max_size=3)
COMMON = st.lists(
    st.builds(CommonExtendedNegotiation, UIDS, UIDS, st.lists(UIDS, max_size=3).map(tuple)),
    max_size=3,
)
SECRETS = st.binary(min_size=1, max_size=40)
IDENTITIES = st.builds(
    UserIdentity, st.sampled_from([1, 3, 4, 5]), SECRETS, response_requested=st.booleans()
) | st.builds(UserIdentity, st.just(2), SECRETS, SECRETS, st.booleans())


def _unique_roles(roles: list[RoleSelection]) -> tuple[RoleSelection, ...]:
    return tuple({role.sop_class_uid: role for role in roles}.values())


_COMMON_INFORMATION = {
    "max_pdu": st.integers(64, 2**32 - 1) | st.just(0),
    "implementation_class_uid": UIDS,
    "implementation_version_name": NAMES,
    "asynchronous_operations": st.none() | st.builds(AsynchronousOperations, U16, U16),
    "roles": ROLES.map(_unique_roles),
    "extended": EXTENDED.map(tuple),
}
REQUEST_INFORMATION = st.builds(
    UserInformation,
    **_COMMON_INFORMATION,
    common_extended=COMMON.map(tuple),
    user_identity=st.none() | IDENTITIES,
)
ACCEPT_INFORMATION = st.builds(
    UserInformation,
    **_COMMON_INFORMATION,
    user_identity_response=st.none() | st.binary(max_size=40),
)


@st.composite
def requests(draw: st.DrawFn) -> AssociateRequest:
    """A-ASSOCIATE-RQ of all kinds."""
    syntaxes = st.lists(UIDS, min_size=1, max_size=4, unique=True).map(tuple)
    contexts = tuple(ProposedContext(number, draw(UIDS), draw(syntaxes)) for number in draw(CONTEXT_IDS))
    return AssociateRequest(draw(NAMES), draw(NAMES), contexts, draw(REQUEST_INFORMATION))


@st.composite
def accepts(draw: st.DrawFn) -> AssociateAccept:
    """A-ASSOCIATE-AC of all kinds."""
    contexts = tuple(AnsweredContext(number, draw(st.integers(0, 4)), draw(UIDS)) for number in draw(CONTEXT_IDS))
    return AssociateAccept(draw(NAMES), draw(NAMES), contexts, draw(ACCEPT_INFORMATION))


_OPTIONAL = {
    "affected_sop_class_uid": UIDS,
    "requested_sop_class_uid": UIDS,
    "affected_sop_instance_uid": UIDS,
    "requested_sop_instance_uid": UIDS,
    "priority": st.integers(0, 2),
    "error_comment": NAMES,
    "error_id": U16,
    "move_destination": NAMES,
    "move_originator_aet": NAMES,
    "move_originator_message_id": U16,
    "remaining": U16,
    "completed": U16,
    "failed": U16,
    "warning": U16,
    "event_type_id": U16,
    "action_type_id": U16,
}
_TAGS = st.lists(st.integers(0, 2**32 - 1), max_size=4).map(tuple)


@st.composite
def commands(draw: st.DrawFn) -> Command:
    """Commands of all kinds, with the elements they must have and any others."""
    field = draw(st.sampled_from(list(CommandField)))
    values = {name: draw(st.none() | strategy) for name, strategy in _OPTIONAL.items()}
    mandatory = Command(field).is_response
    answers = mandatory or field is CommandField.C_CANCEL_RQ
    return Command(
        field=field,
        message_id=draw(st.none() | U16) if answers else draw(U16),
        message_id_being_responded_to=draw(U16) if answers else None,
        status=draw(U16) if mandatory else None,
        data_set_type=draw(st.sampled_from([0x0101, 0x0001])),
        offending_elements=draw(_TAGS),
        attribute_identifiers=draw(_TAGS),
        **values,
    )
