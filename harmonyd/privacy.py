"""What may be said of an error where patients must not be named: in the log, and to whoever did not ask.

Texts of our own errors are written without the values they are about (see ``docs/logs.md``). Texts of other exceptions
may quote anything that was being read, so only those are shown whose kind says that they do not.
"""

from __future__ import annotations

import re

from harmonyd.errors import HarmonydError

__all__ = ["WITHHELD", "Privacy", "complaint", "path_without_values", "said", "uid_or_nothing"]

WITHHELD = "…"
"""Stands for what is not shown."""
_HARMLESS = (OSError, TypeError, AttributeError, NameError, ImportError, MemoryError, RecursionError, AssertionError)
"""They name types, files and system calls. A ``UnicodeError`` or ``ValueError`` quotes what it was about."""
_UID = re.compile(r"[0-9.]{1,64}")
_ID = re.compile(r"[0-9a-f]{32}|[0-9a-f-]{36}|[0-9]{1,5}(,[0-9]{1,5})*")
_WORDS = frozenset(
    (
        *("studies", "series", "instances", "metadata", "rendered", "thumbnail", "frames", "bulkdata", "pixeldata"),
        *("operations", "events", "result", "echo", "find", "get", "move", "store", "retrieve", "query"),
        *("c-echo", "c-find", "c-get", "c-move", "c-store", "health", "status", "v1", "v2", "api", "docs"),
        *("info", "spool", "cache", "backends", "processes", "pipelines", "networks", "routes", "entries", "retry"),
    )
)
_QUOTED = re.compile(
    rb"""(?P<before>\bvalues?\ *\()[^)]*          # DcmElement: Invalid value (X) for element Y
    |(?<![A-Za-z0-9])'[^']*'             # SpecificCharacterSet (0008,0005) value X; not the one of "can't"
    |"[^"]*"
    |\[[^\]]*\]
    |(?<=UID:)\s*(?=[0-9.]*[^0-9.\s])\S+           # a UID that is none: a peer may write anything there
    |(?<=/)(?:[A-Z]{1,3}\.)(?=[0-9.]*[^0-9.\s:])[^\s:/]+  # the file that is named by it
    """,
    re.VERBOSE,
)
_PLAIN = re.compile(r"[A-Za-z0-9_.-]{1,32}")


class Privacy:
    """``shows_patients``: whether the configuration lets the log of this process hold what identifies patients.

    ``names``: of the configuration, which may stand in paths.
    """

    shows_patients = False
    names: frozenset[str] = frozenset()


def said(error: BaseException) -> str:
    """The text of an error for the log; what a PACS wrote with its status only where patients may be named."""
    if isinstance(error, HarmonydError):
        comment = error.extra.get("dimse_comment") if Privacy.shows_patients else None
        return f"{error.detail}; it says: {comment}" if comment else error.detail
    if isinstance(error, _HARMLESS) or Privacy.shows_patients:
        return str(error) or type(error).__name__
    return type(error).__name__


def complaint(line: bytes) -> bytes:
    """A warning or error of a DCMTK program for the log: what it quotes of a data set or of a peer is withheld."""
    return line if Privacy.shows_patients else _QUOTED.sub(_kept, line)


def _kept(found: re.Match[bytes]) -> bytes:
    return (found["before"] or b"") + b"..."


def uid_or_nothing(value: str) -> str:
    """A UID, or a mark that there was something else: a peer may write anything there."""
    return value if Privacy.shows_patients or not value or _UID.fullmatch(value) else WITHHELD


def path_without_values(path: str, prefix: str = "") -> str:
    """The path of a request for the log: the configured ``prefix``, words of the interface, UIDs and ids of ours.

    Any other segment may name a patient (``/Patient/4711``) and is withheld. Where nothing is served (no prefix), the
    first segment is kept: there a mistyped prefix stands.
    """
    if Privacy.shows_patients:
        return path
    segments = path.split("/")
    kept = prefix.count("/")
    shown = [
        segment if number <= kept or _is_harmless(segment) or (not prefix and number == 1 and _PLAIN.fullmatch(segment))
        else WITHHELD
        for number, segment in enumerate(segments)
    ]
    return "/".join(shown)


def _is_harmless(segment: str) -> bool:
    is_known = not segment or segment.lower() in _WORDS or segment in Privacy.names
    return is_known or bool(_UID.fullmatch(segment) or _ID.fullmatch(segment))
