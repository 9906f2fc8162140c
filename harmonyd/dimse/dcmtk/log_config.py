"""How DCMTK's programs are told to log (``-lc``, log4cplus), so that their outcome can be read from it.

At ``-v`` the final status has no number (every 0xCxxx reads "UnableToProcess"), at ``-d`` there are hundreds of lines
an association and ten a result. So: DEBUG, and filters that let through only what decides an outcome. Messages that
repeat a client's query values are dropped: they are patient data, and a value could imitate a log line.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

MARK = "@"
"""Every line of the log starts with ``@LEVEL|``; anything else on the pipe is no log line."""

_HEAD = f"""\
log4cplus.rootLogger = WARN, A
log4cplus.logger.dcmtk.dcmnet = DEBUG
log4cplus.logger.dcmtk.apps = DEBUG
log4cplus.appender.A = log4cplus::ConsoleAppender
log4cplus.appender.A.logToStdErr = true
log4cplus.appender.A.ImmediateFlush = true
log4cplus.appender.A.layout = log4cplus::PatternLayout
log4cplus.appender.A.layout.ConversionPattern = {MARK}%p|%m%n
"""

_DROPPED = (
    "Request Identifiers:",
    "query keys:",
    ": C-STORE RQ",
    "Received C-STORE Request",
    "Sending C-STORE Response",
    "Received C-GET Response",
    "Received Move Response",
    "Writing response dataset",
    "Sending file:",
    "Converting transfer syntax",
)
_PENDING = (": 0xff00: ", ": 0xff01: ")
"""Pending responses: a block of ten lines for each result. The files tell of the same, but not how much is left."""
_LOOKED_UP = {0x00080005: "CS", 0x00080016: "UI", 0x00080018: "UI", 0x7FE00010: "ox"}
"""Tag and VR, in DCMTK's spelling: Specific Character Set, SOP Class and Instance UID, Pixel Data."""
_KEPT = (
    "INCOMING DIMSE MESSAGE",
    "Status Detail",
    "status detail",
    # getscu says only at DEBUG why there is no association.
    "Association Rejected:",
    "Association Request Failed:",
)


def log_config(*, pending: bool = False) -> str:
    """The text of the configuration file; ``pending``: with the pending responses."""
    dropped = _DROPPED if pending else (*_PENDING, *_DROPPED)
    filters = [("StringMatchFilter", {"StringToMatch": text, "AcceptOnMatch": "false"}) for text in dropped]
    filters += [("StringMatchFilter", {"StringToMatch": text, "AcceptOnMatch": "true"}) for text in _KEPT]
    filters += [("LogLevelRangeFilter", {"LogLevelMin": "INFO", "AcceptOnMatch": "true"}), ("DenyAllFilter", {})]
    return _HEAD + _filter_lines(filters)


def _filter_lines(filters: Iterable[tuple[str, Mapping[str, str]]]) -> str:
    lines = []
    for number, (kind, options) in enumerate(filters, 1):
        key = f"log4cplus.appender.A.filters.{number}"
        lines.append(f"{key} = log4cplus::spi::{kind}\n")
        lines += [f"{key}.{option} = {value}\n" for option, value in options.items()]
    return "".join(lines)


def receiver_log_config() -> str:
    """The same for ``storescp --inetd``: its standard error goes nowhere, so the log goes to descriptor 3.

    Of its messages below INFO, thousands of lines an association, only C-STORE requests and our responses get through:
    they name the object and the Move Originator, and say what was acknowledged.
    """
    appender = (
        "log4cplus.logger.dcmtk.dcmnet = TRACE\n"
        "log4cplus.appender.A = log4cplus::FileAppender\n"
        "log4cplus.appender.A.File = /dev/fd/3\n"
        "log4cplus.appender.A.Append = true\n"
    )
    return _receiver_log_config(appender, f"{MARK}%p|%m%n", ": C-STORE RQ", "DIMSE Command to send:")


def kept_log_config() -> str:
    """The same for a storescp that is kept running, in DCMTK's own layout: people read its log."""
    appender = "log4cplus.appender.A = log4cplus::ConsoleAppender\nlog4cplus.appender.A.logToStdErr = true\n"
    return _receiver_log_config(appender, "%P: %m%n", ": C-STORE RQ")


def _receiver_log_config(appender: str, pattern: str, *let_through: str) -> str:
    filters: list[tuple[str, Mapping[str, str]]] = [
        ("StringMatchFilter", {"StringToMatch": text, "AcceptOnMatch": "true"}) for text in let_through
    ]
    filters += [("LogLevelRangeFilter", {"LogLevelMin": "INFO", "AcceptOnMatch": "true"}), ("DenyAllFilter", {})]
    head = f"""\
log4cplus.rootLogger = WARN, A
log4cplus.logger.dcmtk.apps.storescp = DEBUG
{appender}log4cplus.appender.A.ImmediateFlush = true
log4cplus.appender.A.layout = log4cplus::PatternLayout
log4cplus.appender.A.layout.ConversionPattern = {pattern}
"""
    return head + _filter_lines(filters)


def small_dictionary() -> str:
    """A data dictionary of the command and file meta groups, and the few attributes DCMTK itself looks up.

    The SCU programs spend half their time parsing DCMTK's full dictionary. They need no more than this: data sets pass
    through them with their VR (Explicit VR), or as the bytes that came (Implicit VR). getscu names files by the UIDs.
    """
    from pydicom._dicom_dict import DicomDictionary

    lines = []
    for tag, (vr, vm, _name, _retired, keyword) in sorted(DicomDictionary.items()):
        if keyword and ((tag >> 16 in (0x0000, 0x0002) and len(vr) == 2) or tag in _LOOKED_UP):
            lines.append(f"({tag >> 16:04x},{tag & 0xFFFF:04x})\t{_LOOKED_UP.get(tag, vr)}\t{keyword}\t{vm}\tDICOM\n")
    return "".join(lines)


def support_files(folder: Path) -> tuple[Path, Path]:
    """Where the log configuration and the small dictionary are in ``folder``."""
    return folder / "dcmtk-log.cfg", folder / "dcmtk-small.dic"


def watched_log_file(folder: Path) -> Path:
    """Where the log configuration for an operation whose progress is watched is in ``folder``."""
    return folder / "dcmtk-watched-log.cfg"


def receiver_log_file(folder: Path) -> Path:
    """Where the log configuration for ``storescp --inetd`` is in ``folder``."""
    return folder / "dcmtk-receiver-log.cfg"


def kept_log_file(folder: Path) -> Path:
    """Where the log configuration for a storescp that is kept running is in ``folder``."""
    return folder / "dcmtk-kept-log.cfg"


def write_support_files(folder: Path) -> None:
    """Write log configurations and the small dictionary into ``folder``. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    config, dictionary = support_files(folder)
    config.write_text(log_config(), encoding="ascii")
    watched_log_file(folder).write_text(log_config(pending=True), encoding="ascii")
    receiver_log_file(folder).write_text(receiver_log_config(), encoding="ascii")
    kept_log_file(folder).write_text(kept_log_config(), encoding="ascii")
    dictionary.write_text(small_dictionary(), encoding="ascii")
