"""The negotiation of presentation contexts and roles."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from native_kit import CT_IMAGE, EXPLICIT_VR_LE, IMPLICIT_VR_LE, VERIFICATION

from harmonyd.dimse.native.core import (
    AnsweredContext,
    ContextResult,
    Preference,
    ProposedContext,
    RoleSelection,
    Support,
    negotiate,
)
from harmonyd.dimse.native.core.contexts import agreed

JPEG = "1.2.840.10008.1.2.4.50"
MR_IMAGE = "1.2.840.10008.5.1.4.1.1.4"


@pytest.mark.parametrize(
    ("preference", "chosen"), [(Preference.REQUESTOR, IMPLICIT_VR_LE), (Preference.ACCEPTOR, EXPLICIT_VR_LE)]
)
def test_whose_order_decides(preference: Preference, chosen: str) -> None:
    """Of what both know, the first in the order of the one whose preference counts."""
    support = Support((JPEG, EXPLICIT_VR_LE, IMPLICIT_VR_LE), preference=preference)
    proposed = ProposedContext(1, CT_IMAGE, (IMPLICIT_VR_LE, EXPLICIT_VR_LE))
    answer = negotiate([proposed], {CT_IMAGE: support}.get)
    assert answer.contexts == (AnsweredContext(1, ContextResult.ACCEPTANCE, chosen),)


def test_what_is_not_supported_is_said_so() -> None:
    """An unknown abstract syntax is result 3, no transfer syntax in common result 4 (PS3.8 table 9-18)."""
    proposed = [ProposedContext(1, MR_IMAGE, (IMPLICIT_VR_LE,)), ProposedContext(3, CT_IMAGE, (JPEG,))]
    answer = negotiate(proposed, {CT_IMAGE: Support((IMPLICIT_VR_LE,))}.get)
    assert [context.result for context in answer.contexts] == [3, 4]


@pytest.mark.parametrize(
    ("asked", "granted", "expected"),
    [
        (None, None, (True, False)),
        ((True, True), None, (True, False)),
        (None, (True, True), (True, False)),
        ((True, True), (True, True), (True, True)),
        ((False, True), (False, True), (False, True)),
        ((True, True), (True, False), (True, False)),
        ((False, True), (True, True), (False, True)),
        ((True, False), (True, True), (True, False)),
        ((False, True), (False, False), (False, False)),
    ],
)
def test_a_role_needs_both_sides(
    asked: tuple[bool, bool] | None, granted: tuple[bool, bool] | None, expected: tuple[bool, bool]
) -> None:
    """A role is there when it was asked for and granted; without an answer the requestor is SCU (PS3.7 D.3.3.4)."""
    proposed = [ProposedContext(1, CT_IMAGE, (IMPLICIT_VR_LE,))]
    answered = [AnsweredContext(1, 0, IMPLICIT_VR_LE)]
    (context,) = agreed(
        proposed,
        answered,
        [RoleSelection(CT_IMAGE, *asked)] if asked else [],
        [RoleSelection(CT_IMAGE, *granted)] if granted else [],
    )
    assert (context.requestor_scu, context.requestor_scp) == expected


@given(st.booleans(), st.booleans(), st.booleans(), st.booleans())
def test_no_role_is_granted_that_was_not_asked_for(ask_scu: bool, ask_scp: bool, may_scu: bool, may_scp: bool) -> None:
    """The answer to a role selection is what was asked for and is allowed; where that is nothing there is none."""
    support = Support((IMPLICIT_VR_LE,), requestor_scu=may_scu, requestor_scp=may_scp)
    asked = [RoleSelection(CT_IMAGE, ask_scu, ask_scp), RoleSelection(MR_IMAGE, True, True)]
    answer = negotiate([], {CT_IMAGE: support}.get, asked)
    granted = RoleSelection(CT_IMAGE, ask_scu and may_scu, ask_scp and may_scp)
    assert answer.roles == ((granted,) if granted.scu or granted.scp else ())


def test_a_context_is_accepted_only_with_what_was_proposed() -> None:
    """No answer, another transfer syntax, an answer nobody asked for: none of them makes a context that can be used."""
    proposed = [ProposedContext(number, CT_IMAGE, (IMPLICIT_VR_LE,)) for number in (1, 3, 5)]
    answers = [AnsweredContext(3, 0, JPEG), AnsweredContext(5, 0, IMPLICIT_VR_LE), AnsweredContext(7, 0, JPEG)]
    contexts = agreed(proposed, answers)
    assert [context.id for context in contexts.accepted()] == [5]
    assert len(contexts) == 3
    assert contexts.get(1) is contexts.get(3) is contexts.get(7) is None
    assert contexts.get(5) is not None and "id=5" in repr(contexts)


def test_finding_a_context_for_an_object() -> None:
    """By SOP class, transfer syntax in the order wished for, and direction."""
    proposed = [
        ProposedContext(1, CT_IMAGE, (IMPLICIT_VR_LE,)),
        ProposedContext(3, CT_IMAGE, (JPEG,)),
        ProposedContext(5, VERIFICATION, (IMPLICIT_VR_LE,)),
        ProposedContext(7, MR_IMAGE, (IMPLICIT_VR_LE,)),
    ]
    answers = [AnsweredContext(p.id, 0, p.transfer_syntaxes[0]) for p in proposed]
    roles = [RoleSelection(MR_IMAGE, False, True)]
    contexts = agreed(proposed, answers, roles, roles)

    def found(*arguments: str, requestor_is_scp: bool = False) -> int | None:
        context = contexts.find(*arguments, requestor_is_scp=requestor_is_scp)
        return context.id if context else None

    assert found(CT_IMAGE) == 1
    assert found(CT_IMAGE, JPEG) == found(CT_IMAGE, EXPLICIT_VR_LE, JPEG, IMPLICIT_VR_LE) == 3
    assert found(CT_IMAGE, EXPLICIT_VR_LE) is None
    assert found(MR_IMAGE) is None and found(MR_IMAGE, requestor_is_scp=True) == 7
    assert found(VERIFICATION, requestor_is_scp=True) is None
