"""The table from errors to statuses, and what a problem detail holds."""

from __future__ import annotations

import errno
import importlib
import json
import pkgutil
from collections.abc import Iterator
from typing import Any

import pytest

import harmonyd
from harmonyd.dimse.errors import AssociationRejected, DimseFailure, DimseTimeout, IdentifierError
from harmonyd.errors import (
    Fault,
    HarmonydError,
    MethodNotAllowed,
    NotFound,
    StorageFull,
    Unavailable,
)
from harmonyd.services.archive.errors import ArchiveBusy
from harmonyd.supervision.errors import ChildNotReady, SpawnError
from harmonyd.web.problem import is_ours, problem, status_of


def members_of(exc: BaseException, operation: str | None = None) -> dict[str, Any]:
    members: dict[str, Any] = json.loads(problem(exc, request_id="req-1", operation=operation)[2])
    return members


def all_error_classes() -> Iterator[type[HarmonydError]]:
    for module in pkgutil.walk_packages(harmonyd.__path__, "harmonyd."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    waiting: list[type[HarmonydError]] = [HarmonydError]
    while waiting:
        kind = waiting.pop()
        waiting += kind.__subclasses__()
        if kind.__module__.startswith("harmonyd."):
            yield kind


def test_every_error_class_has_a_status_that_agrees_with_its_fault() -> None:
    """A caller's fault is 4xx; a remote node's is 502, 504, or 503 where it says so; ours is one of the other 5xx."""
    wrong = []
    for kind in all_error_classes():
        status = status_of(kind)
        expected = {
            Fault.CALLER: 400 <= status < 500,
            Fault.REMOTE: status in (502, 504) or (status, kind) == (503, ArchiveBusy),
            Fault.OURS: status in (500, 503, 507),
        }
        if not expected[kind.fault]:
            wrong.append((kind.__name__, kind.fault.value, status))
    assert wrong == []


@pytest.mark.parametrize(
    ("exc", "status"),
    [
        (IdentifierError("PatientID is empty", key="PatientID"), 400),
        (NotFound("nothing matched"), 404),
        (AssociationRejected("no"), 502),
        (DimseFailure.from_status("C-FIND", 0xA700, "Out of resources", None), 502),
        (ChildNotReady("storescp is BACKOFF"), 503),
        (DimseTimeout("silence"), 504),
        (StorageFull("full"), 507),
        (OSError(errno.ENOSPC, "No space left on device"), 507),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), 507),
        (OSError(errno.EIO, "Input/output error"), 500),
        (SpawnError("no such program"), 500),
        (ZeroDivisionError("secret"), 500),
    ],
)
def test_status_of_an_error(exc: BaseException, status: int) -> None:
    """Subclasses have the status of their base; a full disk is told from other failures of the operating system."""
    found, headers, _ = problem(exc, request_id="r", operation=None)
    assert found == status
    assert headers["Content-Type"] == "application/problem+json"


def test_members_of_a_problem_detail() -> None:
    """RFC 9457's members come with Harmony's (operation, success, error), the fault, the hint and the id."""
    error = DimseFailure.from_status("C-FIND", 0xA700, "Refused: out of resources", "disk full")
    assert members_of(error, "find") == {
        "type": "urn:harmonyd:problem:dimse-failure",
        "title": "The remote node answered with a failure status",
        "status": 502,
        "detail": "C-FIND ended with status 0xA700 (Refused: out of resources); it says: disk full",
        "operation": "find",
        "success": False,
        "error": "C-FIND ended with status 0xA700 (Refused: out of resources); it says: disk full",
        "fault": "remote",
        "request_id": "req-1",
        "dimse_status": "0xA700",
        "dimse_status_text": "Refused: out of resources",
        "dimse_comment": "disk full",
    }


def test_extra_members_cannot_replace_ours() -> None:
    """What an error carries adds members and never changes the ones every answer has."""
    members = members_of(HarmonydError("broken", status=200, success=True, key="x"))
    assert (members["status"], members["success"], members["key"]) == (500, False, "x")


def test_an_unknown_exception_is_not_shown() -> None:
    """The text of an exception that is not ours stays in the log, and the answer says where to look."""
    body = problem(ValueError("password=hunter2"), request_id="req-1", operation=None)[2]
    assert b"hunter2" not in body
    assert b"req-1" in body
    assert members_of(ValueError())["type"] == "urn:harmonyd:problem:internal-error"


def test_unavailable_says_when_to_try_again() -> None:
    """503 always has Retry-After, in whole seconds."""
    assert problem(Unavailable("full", retry_after_secs=2.2), request_id="r", operation=None)[1]["Retry-After"] == "3"
    assert int(problem(Unavailable("full"), request_id="r", operation=None)[1]["Retry-After"]) > 0


def test_method_not_allowed_names_the_methods() -> None:
    """405 has Allow (RFC 9110 section 15.5.6)."""
    error = MethodNotAllowed("no", allow=("GET", "POST"))
    assert problem(error, request_id="r", operation=None)[1]["Allow"] == "GET, POST"


def test_a_lone_surrogate_cannot_break_the_answer() -> None:
    """Text that cannot be encoded is escaped, not an error in the error handling."""
    assert problem(NotFound("odd \ud800"), request_id="r", operation=None)[0] == 404


def test_only_our_faults_are_logged_with_a_traceback() -> None:
    """A defect or a broken installation is ours; a caller's mistake, a PACS and a full disk are not."""
    assert is_ours(ValueError())
    assert is_ours(SpawnError("x"))
    assert not is_ours(NotFound("x"))
    assert not is_ours(AssociationRejected("x"))
    assert not is_ours(Unavailable("x"))
    assert not is_ours(OSError(errno.ENOSPC, "x"))
