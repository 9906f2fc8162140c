"""What was found: one step after the other, for each backend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from harmonyd.control.text import cleaned
from harmonyd.dimse.errors import AssociationRejected, DimseTimeout, OurCertificateRefused, RemoteUnreachable, TlsFailed
from harmonyd.errors import Fault, HarmonydError


class Result(StrEnum):
    """Of a step, and, as the worst of its steps, of a backend."""

    OK = "ok"
    WARNING = "warning"
    """It works, or cannot be known; ``hint`` says what to look at."""
    ERROR = "error"
    SKIPPED = "skipped"
    """It needs a step that failed, or says nothing that matters to this backend."""


class Side(StrEnum):
    """Who has to change something."""

    HARMONYD = "harmonyd"
    PACS = "pacs"
    NETWORK = "network"


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that was tried. Texts are for people, and fit for a terminal whatever the PACS said."""

    step: str
    result: Result
    text: str
    hint: str | None = None
    """What to change."""
    side: Side | None = None
    """Where; None: nothing is to be changed."""
    lines: Mapping[str, str] = field(default_factory=dict)
    """By kind of PACS, what to enter there."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """For machines; the members depend on the step."""

    def as_json(self) -> dict[str, Any]:
        """Always with the same members."""
        return {
            "step": self.step,
            "result": self.result.value,
            "text": cleaned(self.text),
            "hint": None if self.hint is None else cleaned(self.hint),
            "side": None if self.side is None else self.side.value,
            "lines": dict(self.lines),
            "details": cleaned(dict(self.details)),
        }


def worst(results: Sequence[Result]) -> Result:
    """Error, warning or ok: skipped steps say nothing."""
    return next((result for result in (Result.ERROR, Result.WARNING) if result in results), Result.OK)


def failed(step: str, error: HarmonydError, **details: Any) -> Step:
    """The step that ended in this error."""
    kept = {key: value for key, value in error.extra.items() if key != "dimse_comment"}
    return Step(step, Result.ERROR, error.detail, error.hint, side_of(error), details={**kept, **details})


_OURS_TO_MEND = {"unknown_ca", "not_pinned", "peer_speaks_plain", "peer_speaks_tls", "server_name"}


def side_of(error: HarmonydError) -> Side:
    """Who most probably has to change something; the hint names the other possibility where there is one."""
    if error.fault is Fault.OURS or isinstance(error, OurCertificateRefused):
        return Side.HARMONYD
    if isinstance(error, TlsFailed):
        return Side.HARMONYD if error.extra.get("tls") in _OURS_TO_MEND else Side.PACS
    if isinstance(error, RemoteUnreachable):
        return Side.HARMONYD if "host name" in error.detail else Side.NETWORK
    if isinstance(error, DimseTimeout):
        return Side.NETWORK if error.extra.get("timeout") == "connect" else Side.PACS
    if isinstance(error, AssociationRejected):
        called = str(error.extra.get("reject_reason", "")).startswith("Called")
        return Side.HARMONYD if called else Side.PACS
    return Side.PACS
