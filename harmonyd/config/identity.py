"""``user_identity`` of a dicom backend; the passcode is in a file of its own, and never in config.toml."""

from __future__ import annotations

import stat
from pathlib import Path

from harmonyd.config import checks
from harmonyd.config.fields import Section
from harmonyd.identity import Credentials

MAX_BYTES = 1024
"""Of each; the item's limit is 65,535 (PS3.7 table D.3-14)."""


def credentials(section: Section, base: Path) -> Credentials:
    """The table. ``base`` is the folder of config.toml."""
    section.require("username")
    username = section.text("username", "", _field)
    name = section.text("passcode_file", "", checks.path)
    section.finish()
    return Credentials(username, _passcode(section, (base / name).resolve()) if name else None)


def _passcode(section: Section, path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            if stat.S_IMODE(path.stat().st_mode) & 0o007:
                section.warn("passcode_file", "everybody may read it: chmod o= is better")
            passcode = file.read(MAX_BYTES + 2).decode().rstrip("\r\n")
    except OSError as error:
        remedy = "paths are relative to config.toml's folder"
        section.problem("passcode_file", f"cannot be read: {error.strerror}", remedy)
    except UnicodeDecodeError:
        section.problem("passcode_file", "not text in UTF-8")
    else:
        wrong = _field(passcode)
        if wrong is None:
            return passcode
        section.problem("passcode_file", wrong, "its first and only line is the passcode")
    return None


def _field(value: str) -> str | None:
    if not value:
        return "empty"
    if len(value.encode()) > MAX_BYTES:
        return f"more than {MAX_BYTES} bytes"
    return None if value.isprintable() else "it contains characters that cannot be printed"
