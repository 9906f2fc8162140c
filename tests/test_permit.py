"""What rules allow: roles, actions, backends, and attributes that have to match."""

from __future__ import annotations

from typing import Any

import pytest

from harmonyd.errors import Forbidden, Unauthorized
from harmonyd.permit import NOTHING, Acting, Both, Element, Rule, Rules, acting, both, forced, holds
from harmonyd.subject import Subject

CLINIC = Element("00080080", "InstitutionName", ("Clinic*",))
WARD = Element("00080080", "InstitutionName", ("Ward 1", "Ward 2"))
RULES = [
    Rule(frozenset({"reader"}), frozenset({"find", "retrieve"})),
    Rule(frozenset({"guest"}), frozenset({"find"}), frozenset({"main"}), (CLINIC,)),
    Rule(frozenset({"guest"}), frozenset({"find"}), frozenset({"main"}), (WARD,)),
    Rule(frozenset({"modality"}), frozenset({"store"}), frozenset({"main"})),
    Rule(frozenset({"*"}), frozenset({"echo"})),
    Rule(frozenset({"anonymous"}), frozenset({"manage"})),
]
ANN = Subject("ann", frozenset({"reader"}))
TELLS: list[tuple[str, str]] = []


def permit(*roles: str, known: bool = True) -> Rules:
    subject = Subject("x", frozenset(roles)) if known else None
    return Rules(subject, RULES, lambda: "Basic", lambda action, backend: TELLS.append((action, backend)))


@pytest.mark.parametrize(
    ("roles", "allowed"),
    [
        (("reader",), {"echo", "find", "get", "move", "retrieve", "manage"}),
        (("guest",), {"echo", "find", "manage"}),
        (("modality",), {"echo", "store", "manage"}),
        (("reader", "modality"), {"echo", "find", "get", "move", "retrieve", "store", "manage"}),
        ((), {"echo", "manage"}),
        (("*", "anonymous"), {"echo", "manage"}),
        (None, {"manage"}),
    ],
)
def test_roles_and_actions(roles: tuple[str, ...] | None, allowed: set[str]) -> None:
    """What no rule allows is forbidden; who has no credentials is asked for some."""
    found = permit(*(roles or ()), known=roles is not None)
    for action in ("echo", "find", "get", "move", "retrieve", "store", "forward", "manage", "", "unheard-of"):
        assert found.allows(action, "main") == (action in allowed), action
        if action in allowed:
            found.limits(action, "main")
            continue
        with pytest.raises(Unauthorized if roles is None else Forbidden):
            found.limits(action, "main")
    assert TELLS.pop() == ("unheard-of", "main")


def test_a_refusal_because_of_limits_is_told() -> None:
    """Once, whatever permits are around it."""
    Both(Acting(permit("guest"), "find"), permit("guest")).refused("get", "main")
    assert TELLS[-1:] == [("find", "main")]
    TELLS.clear()
    permit("guest").refused("move", "main")
    assert TELLS.pop() == ("retrieve", "main")
    NOTHING.refused("find", "main")
    assert TELLS == []


def test_backends() -> None:
    """A rule may be for some only."""
    assert permit("modality").allows("store", "main")
    assert not permit("modality").allows("store", "other")
    assert not permit("guest").allows("find", "other")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        *(("Clinic", True), ("Clinic North", True), ("Ward 2", True), ("Ward 2 ", True), ("Ward 3", False)),
        *(("clinic", False), ("", False), (None, False), (["Other", "Ward 1"], True), (5, False)),
    ],
)
def test_limits(value: Any, expected: bool) -> None:
    """One rule's attributes have to match; what is missing or empty matches nothing."""
    limits = permit("guest").limits("find", "main")
    values = value if isinstance(value, list) else [value]
    assert holds(limits, {"00080080": {"vr": "LO", "Value": values}}) is expected
    assert not holds(limits, {})
    assert not holds(limits, {"00080080": {"vr": "LO"}})
    assert not holds(limits, {"00080080": "Clinic"})


def test_a_rule_without_a_limit_lifts_that_of_others() -> None:
    """Rules add up; permits do not."""
    assert permit("guest", "reader").limits("find", "main") == ()
    two = Both(permit("guest"), permit("reader"))
    assert two.limits("find", "main") == permit("guest").limits("find", "main")
    assert not two.allows("retrieve", "main")
    with pytest.raises(Forbidden):
        two.limits("retrieve", "main")


def test_person_names_and_numbers() -> None:
    """Names match by their Alphabetic part, numbers as text."""
    only = ((((Element("00100010", "PatientName", ("DOE^*",)), Element("00200013", "InstanceNumber", ("7",))),)),)
    name = {"00100010": {"Value": [{"Alphabetic": "DOE^J", "Ideographic": "X"}]}}
    assert holds(only, {**name, "00200013": {"Value": [7.0]}})
    assert not holds(only, {**name, "00200013": {"Value": [True]}})


def test_what_can_be_asked_for_at_once() -> None:
    """Only what all matches have: a single pattern of a single rule."""
    assert forced(permit("guest").limits("find", "main")) == {}
    assert forced((((CLINIC,),),)) == {"00080080": "Clinic*"}
    assert forced((((WARD,),),)) == {}


def test_none_allows_everything_and_nothing_allows_nothing() -> None:
    """Without a permit nobody limits anything; a request that nobody looked at may do nothing."""
    assert both(None, None) is None
    assert acting(None, "retrieve") is None
    one = permit("reader")
    assert both(one, None) is one
    assert both(None, one) is one
    assert not Both(one, NOTHING).allows("find", "main")
    with pytest.raises(Forbidden):
        Both(one, NOTHING).limits("find", "main")


def test_acting() -> None:
    """Who may do something may have found out what that needs."""
    assert not permit("modality").allows("find", "main")
    assert Acting(permit("modality"), "store").allows("find", "main")
    assert Acting(permit("guest"), "find").limits("get", "main") == permit("guest").limits("find", "main")
