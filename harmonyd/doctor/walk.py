"""The steps in their order. One that needs another which failed is skipped, and told as that."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from harmonyd.doctor import archive, negotiation, network, operations, receiver
from harmonyd.doctor.case import Case
from harmonyd.doctor.report import Result, Step

_PLAN: dict[str, tuple[Callable[[Case], Step], bool]] = {
    "resolve": (network.resolve, True),
    "tcp": (network.tcp, True),
    "tls": (network.tls, True),
    "association": (negotiation.association, True),
    "storage": (negotiation.storage, False),
    "echo": (operations.echo, False),
    "find": (operations.find, False),
    "receiver": (receiver.receiver, False),
    "move": (operations.move, False),
}
"""What does it, and whether all that comes after it is in vain without it."""
STEPS = tuple(_PLAN)
_OF_AN_ARCHIVE: dict[str, tuple[Callable[[Case], Step], bool]] = {
    **{name: _PLAN[name] for name in ("resolve", "tcp", "tls")},
    "search": (archive.search, False),
}
_ALWAYS = {"receiver"}


def walk(case: Case) -> Iterator[Step]:
    """Every step of ``STEPS``, or those of an archive, as it ends. Nothing stays open, however it is left."""
    obstacle = None
    try:
        for name, (act, is_needed) in (_PLAN if case.archive is None else _OF_AN_ARCHIVE).items():
            if obstacle is not None and name not in _ALWAYS:
                yield Step(name, Result.SKIPPED, f"not tried: {obstacle} failed")
                continue
            step = act(case)
            if is_needed and step.result is Result.ERROR and obstacle is None and not _goes_on(step):
                obstacle = name
            yield step
        case.release()
    finally:
        case.close()


def _goes_on(step: Step) -> bool:
    """The association stands, though a service is missing in it."""
    return "contexts" in step.details
