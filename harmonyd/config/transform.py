"""``type = "transform"`` and ``"metadata_transform"``: JOLT specifications, in the table or in a file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harmonyd.config import checks
from harmonyd.config.fields import Section
from harmonyd.jolt import BadSpecification, Chain, decode

MAX_SPEC_BYTES = 1_000_000
SIDES = ("left", "right", "both")
TARGETS = ("metadata", "target_details")


def options(folders: Sequence[Path], section: Section) -> Mapping[str, Any]:
    """The keys of ``transform``."""
    found = {
        **_common(folders, section),
        "per_record": section.flag("per_record", False),
        "max_bytes": section.integer("max_bytes", 10_000_000, 1000, 1_000_000_000),
        "content_type": section.text("content_type", "application/json", checks.json_media_type),
    }
    section.finish()
    return found


def metadata_options(folders: Sequence[Path], section: Section) -> Mapping[str, Any]:
    """The keys of ``metadata_transform``."""
    target = section.choice("transform_target", "metadata", TARGETS)
    found = {**_common(folders, section), "transform_target": target}
    if target == "target_details" and found["apply"] != "left":
        section.problem("transform_target", "target_details are there on the request side only", 'set apply = "left"')
    section.finish()
    return found


def _common(folders: Sequence[Path], section: Section) -> dict[str, Any]:
    section.ignore(["debug"], "what is transformed is about patients, and never logged")
    return {
        "specification": _specification(folders, section),
        "apply": section.choice("apply", "left", SIDES),
        "fail_on_error": section.flag("fail_on_error", True),
        "inject_context": section.flag("inject_context", False),
    }


def _specification(folders: Sequence[Path], section: Section) -> Any:
    """The operations as they are written; None when a mistake was noted."""
    inline, path = section.raw("spec"), section.text("spec_path", "", checks.path)
    if ("spec" in section) == ("spec_path" in section):
        what = "given beside spec" if inline is not None else "missing, and spec too"
        section.problem("spec_path", what, "give one of them: spec_path (a file) or spec (the operations themselves)")
        return None
    if inline is not None:
        return _checked(section, "spec", inline, "")
    return _from_file(section, folders, path) if path else None


def _from_file(section: Section, folders: Sequence[Path], name: str) -> Any:
    tried = list(dict.fromkeys(folder / name for folder in folders))
    file = next((path for path in tried if path.is_file()), None)
    if file is None:
        section.problem("spec_path", "no such file", f"looked for {' and '.join(map(str, tried))}")
        return None
    try:
        with file.open("rb") as opened:
            text = opened.read(MAX_SPEC_BYTES + 1)
    except OSError as error:
        section.problem("spec_path", f"{file} cannot be read: {error.strerror}")
        return None
    if len(text) > MAX_SPEC_BYTES:
        section.problem("spec_path", f"{file} has more than {MAX_SPEC_BYTES} bytes", "is it a specification?")
        return None
    return _checked(section, "spec_path", text, f"{file}: ")


def _checked(section: Section, key: str, given: Any, where: str) -> Any:
    """``given`` is JSON text, or (in TOML) the list of operations itself."""
    try:
        # What is written as TOML has to be possible in JSON (a date is not).
        specification = decode(given if isinstance(given, str | bytes) else json.dumps(given))
    except (TypeError, ValueError) as error:
        section.problem(key, f"{where}not JSON: {error}")
        return None
    try:
        Chain(specification)
    except BadSpecification as error:
        section.problem(key, where + error.detail, 'write [{"operation": "shift", "spec": {…}}, …]')
        return None
    return specification
