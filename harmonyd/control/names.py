"""From ``group:name``, ``group:*`` and ``group`` to children, with supervisor's rules and faults."""

from __future__ import annotations

from collections.abc import Sequence

from supervisor.options import make_namespec, split_namespec
from supervisor.xmlrpc import Faults, RPCError

from harmonyd.control.api import Child


def full_name(child: Child) -> str:
    """``group:name``; one name when both are the same."""
    return str(make_namespec(child.group, child.name))


def in_order(children: Sequence[Child]) -> list[Child]:
    """As supervisord lists them: by group, then by name."""
    return sorted(children, key=lambda child: (child.group, child.name))


def group_of(children: Sequence[Child], group: str) -> list[Child]:
    """The children of a group, which may also be named as ``group:name`` (``api.Changes``) or ``group:*``.

    Raises ``RPCError`` BAD_NAME when there are none.
    """
    named, name = split_namespec(group) if ":" in group else (group, None)
    found = [child for child in in_order(children) if child.group == named and name in (None, child.name)]
    if not found:
        raise RPCError(Faults.BAD_NAME, group)
    return found


def resolve(children: Sequence[Child], namespec: str) -> Child | None:
    """The child, or None when ``namespec`` names a whole group (that exists). Raises ``RPCError`` BAD_NAME."""
    group, name = split_namespec(namespec)
    if name is None:
        group_of(children, group)
        return None
    return one(children, namespec)


def one(children: Sequence[Child], namespec: str) -> Child:
    """The child that ``namespec`` names. Raises ``RPCError`` BAD_NAME, for a whole group too."""
    group, name = split_namespec(namespec)
    for child in children:
        if (child.group, child.name) == (group, name):
            return child
    raise RPCError(Faults.BAD_NAME, namespec)
