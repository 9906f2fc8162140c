"""Presentation contexts: what an acceptor answers, and what both sides then have (PS3.8 9.3.2-3, PS3.7 D.3.3.4)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum

from harmonyd.dimse.native.core.items import AnsweredContext, ContextResult, ProposedContext, RoleSelection


class Preference(Enum):
    """Whose order of transfer syntaxes decides when both sides have several in common."""

    REQUESTOR = "requestor"
    ACCEPTOR = "acceptor"


@dataclass(frozen=True, slots=True)
class Support:
    """What an acceptor does with one abstract syntax."""

    transfer_syntaxes: tuple[str, ...]
    """In its own order of preference."""
    requestor_scu: bool = True
    requestor_scp: bool = False
    """The requestor may be SCP if it asks for it: what serves C-GET accepts it for storage classes."""
    preference: Preference = Preference.REQUESTOR


@dataclass(frozen=True, slots=True)
class Answer:
    """For ``Association.accept()``: an answer to each proposed context and to each proposed role."""

    contexts: tuple[AnsweredContext, ...]
    roles: tuple[RoleSelection, ...] = ()


@dataclass(frozen=True, slots=True)
class Context:
    """A presentation context as both sides know it after the negotiation."""

    id: int
    abstract_syntax: str
    result: int
    transfer_syntax: str = ""
    """The agreed one; empty when the context was not accepted."""
    requestor_scu: bool = True
    requestor_scp: bool = False

    @property
    def accepted(self) -> bool:
        """Messages may be sent in it."""
        return self.result == ContextResult.ACCEPTANCE


class Contexts:
    """All presentation contexts of an association, in the order in which they were proposed."""

    def __init__(self, contexts: Iterable[Context] = ()) -> None:
        self._by_id = {context.id: context for context in contexts}

    def __iter__(self) -> Iterator[Context]:
        return iter(self._by_id.values())

    def __len__(self) -> int:
        return len(self._by_id)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Contexts) and self._by_id == other._by_id

    def __repr__(self) -> str:
        return f"Contexts({list(self)})"

    def get(self, context_id: int) -> Context | None:
        """The *accepted* context with this id."""
        context = self._by_id.get(context_id)
        return context if context is not None and context.accepted else None

    def accepted(self, abstract_syntax: str | None = None) -> Iterator[Context]:
        """The accepted ones, or those of them with this abstract syntax."""
        for context in self:
            if context.accepted and abstract_syntax in (None, context.abstract_syntax):
                yield context

    def find(self, abstract_syntax: str, *transfer_syntaxes: str, requestor_is_scp: bool = False) -> Context | None:
        """The first accepted context for ``abstract_syntax``.

        Of several ``transfer_syntaxes`` an earlier one wins; none means that any will do. ``requestor_is_scp``: the
        operation goes from acceptor to requestor (the C-STOREs of a C-GET).
        """
        fitting = [
            context
            for context in self.accepted(abstract_syntax)
            if (context.requestor_scp if requestor_is_scp else context.requestor_scu)
        ]
        if not transfer_syntaxes:
            return fitting[0] if fitting else None
        by_syntax = {context.transfer_syntax: context for context in reversed(fitting)}
        return next((by_syntax[uid] for uid in transfer_syntaxes if uid in by_syntax), None)


def negotiate(
    proposed: Iterable[ProposedContext],
    supported: Callable[[str], Support | None],
    proposed_roles: Iterable[RoleSelection] = (),
) -> Answer:
    """Answer each proposed context as ``supported`` says of its abstract syntax; ``some_dict.get`` will do for it.

    Roles are answered with what was asked for, as far as ``Support`` grants it. Where that is nothing there is no
    answer: the requestor is SCU then.
    """
    contexts = tuple(_answer(context, supported(context.abstract_syntax)) for context in proposed)
    roles = (_granted(role, supported(role.sop_class_uid)) for role in proposed_roles)
    return Answer(contexts, tuple(role for role in roles if role.scu or role.scp))


def _granted(role: RoleSelection, support: Support | None) -> RoleSelection:
    if support is None:
        return RoleSelection(role.sop_class_uid, False, False)
    return RoleSelection(role.sop_class_uid, role.scu and support.requestor_scu, role.scp and support.requestor_scp)


def _answer(context: ProposedContext, support: Support | None) -> AnsweredContext:
    first = context.transfer_syntaxes[0]
    if support is None:
        return AnsweredContext(context.id, ContextResult.ABSTRACT_SYNTAX_NOT_SUPPORTED, first)
    ours, theirs = support.transfer_syntaxes, context.transfer_syntaxes
    order, other = (theirs, ours) if support.preference is Preference.REQUESTOR else (ours, theirs)
    chosen = next((uid for uid in order if uid in other), None)
    if chosen is None:
        return AnsweredContext(context.id, ContextResult.TRANSFER_SYNTAXES_NOT_SUPPORTED, first)
    return AnsweredContext(context.id, ContextResult.ACCEPTANCE, chosen)


def agreed(
    proposed: Iterable[ProposedContext],
    answered: Iterable[AnsweredContext],
    proposed_roles: Iterable[RoleSelection] = (),
    answered_roles: Iterable[RoleSelection] = (),
) -> Contexts:
    """What follows from both sides' items. The requestor is SCU, and only that, where no role was agreed on.

    A context that was not answered, or was accepted with a transfer syntax that was not proposed, is not accepted.
    """
    answers = {answer.id: answer for answer in answered}
    asked = {role.sop_class_uid: role for role in proposed_roles}
    granted = {role.sop_class_uid: role for role in answered_roles}

    def roles(uid: str) -> tuple[bool, bool]:
        if uid not in asked or uid not in granted:
            return True, False
        return asked[uid].scu and granted[uid].scu, asked[uid].scp and granted[uid].scp

    return Contexts(_agreed(context, answers.get(context.id), *roles(context.abstract_syntax)) for context in proposed)


def _agreed(context: ProposedContext, answer: AnsweredContext | None, scu: bool, scp: bool) -> Context:
    result = answer.result if answer is not None else ContextResult.NO_REASON
    if answer is None or result != ContextResult.ACCEPTANCE:
        return Context(context.id, context.abstract_syntax, result)
    if answer.transfer_syntax not in context.transfer_syntaxes:
        return Context(context.id, context.abstract_syntax, ContextResult.NO_REASON)
    return Context(context.id, context.abstract_syntax, result, answer.transfer_syntax, scu, scp)
