"""Which presentation contexts an SCP of ours accepts, from the services that it offers."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

from harmonyd.dimse.native import core, names
from harmonyd.dimse.normalized import PERFORMED_STEP, PUSH_MODEL
from harmonyd.dimse.serving import COMMIT, FIND, GET, MOVE, STEPS, STORE

_ABSTRACT_SYNTAXES: Mapping[str, Collection[str]] = {
    FIND: names.FIND.values(),
    GET: names.GET.values(),
    MOVE: names.MOVE.values(),
    STEPS: (PERFORMED_STEP,),
}
_FOR_IDENTIFIERS = core.Support(names.UNCOMPRESSED, preference=core.Preference.ACCEPTOR)
"""Explicit VR where there is a choice: with it the VR of private elements comes."""


def answer_for(request: core.AssociateRequest, services: Collection[str] = (STORE,)) -> core.Answer:
    """The answer to the proposed contexts: C-ECHO, and what belongs to ``services`` (of ``dimse.serving``).

    Storage classes are taken in every transfer syntax, the requestor's first one: objects are kept and passed on as
    they come, so none is better than another. For C-GET the requestor has to ask for the role of SCP (PS3.7 section
    D.3.3.4); where nothing can be stored, nothing else of these classes is accepted. So it is with Storage Commitment:
    who asks for the role of SCP has something to report on what we asked of it.
    """
    syntaxes = {uid: None for context in request.contexts for uid in context.transfer_syntaxes}
    usable = tuple(uid for uid in syntaxes if uid not in names.NO_TRANSFER)
    asked = {role.sop_class_uid for role in request.user_information.roles if role.scp}
    receivers = asked if GET in services else frozenset()
    questions = frozenset(_questions(services))

    def supported(abstract_syntax: str) -> core.Support | None:
        if abstract_syntax == names.VERIFICATION:
            return core.Support(usable)
        if abstract_syntax in questions:
            return _FOR_IDENTIFIERS
        if abstract_syntax == PUSH_MODEL:
            return _commitment(can_ask=COMMIT in services, reports=PUSH_MODEL in asked)
        can_receive = abstract_syntax in receivers
        if names.is_storage(abstract_syntax) and (can_receive or STORE in services):
            return core.Support(usable, requestor_scu=STORE in services, requestor_scp=can_receive)
        return None

    return core.negotiate(request.contexts, supported, request.user_information.roles)


def _commitment(*, can_ask: bool, reports: bool) -> core.Support | None:
    if not can_ask and not reports:
        return None
    return replace(_FOR_IDENTIFIERS, requestor_scu=can_ask, requestor_scp=reports)


def _questions(services: Collection[str]) -> Iterator[str]:
    for service, uids in _ABSTRACT_SYNTAXES.items():
        if service in services:
            yield from uids
