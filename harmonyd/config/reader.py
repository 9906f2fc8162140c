"""The files on disk: ``config.toml`` and every ``*.toml`` of the pipelines folder, read and merged by name."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harmonyd.config import checks
from harmonyd.config.errors import Problem, Report, listing, nearest
from harmonyd.config.fields import Section

DEFINITIONS = ("network", "pipelines", "endpoints", "backends", "middleware")
"""Tables of named things; each may be in any file, each name in one file only."""
REGISTRATIONS = ("services", "middleware_types")
"""Harmony's registrations, which any file may repeat."""
MAIN_ONLY = (
    *("proxy", "storage", "limits", "logging", "management", "telemetry", "control", "supervision", "spool"),
    *("operations", "cache", "web", "audit"),
)
OUT_OF_SCOPE = ("targets",)
WITHOUT_EFFECT = ("cloud", "jmix", "runbeam", "transforms", "wireguard")


@dataclass(slots=True)
class Layers:
    """Both layers, merged."""

    main: Section
    definitions: dict[str, dict[str, Section]] = field(default_factory=lambda: {kind: {} for kind in DEFINITIONS})
    registrations: list[Section] = field(default_factory=list)
    """The ``[services]`` and ``[middleware_types]`` tables, one for each file that has them."""


def read_layers(path: Path, report: Report) -> Layers | None:
    """Read all files. None when the main file cannot be read; whatever else is wrong is noted and left out."""
    data = _read_toml(path, report)
    if data is None:
        return None
    layers = Layers(Section(report, path, "", data))
    _merge(layers.main, layers)
    _check_tables(layers.main, MAIN_ONLY)
    for file in _pipeline_files(path, layers, report):
        data = _read_toml(file, report)
        if data is not None:
            top = Section(report, file, "", data)
            _merge(top, layers)
            _check_tables(top, ())
    return layers


def _read_toml(path: Path, report: Report) -> dict[str, Any] | None:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        complaint, remedy = "no such file", "create it, or name another with --config"
    except OSError as error:
        complaint, remedy = f"cannot be read: {error.strerror}", ""
    except UnicodeDecodeError as error:
        complaint, remedy = f"not UTF-8 at byte {error.start}", "save it as UTF-8"
    except tomllib.TOMLDecodeError as error:
        complaint, remedy = f"not valid TOML: {error}", ""
    report.problems.append(Problem(path, "", None, complaint, remedy=remedy))
    return None


def _pipeline_files(path: Path, layers: Layers, report: Report) -> list[Path]:
    """The files of ``[proxy] pipelines_path``, sorted by name."""
    proxy = layers.main.table("proxy")
    folder = path.parent / proxy.text("pipelines_path", "pipelines", checks.path)
    try:
        return sorted(entry for entry in folder.iterdir() if entry.suffix == ".toml" and entry.name[0] != ".")
    except OSError as error:
        # A configuration in one file needs no folder; one that names a folder does.
        if "pipelines_path" in proxy or not layers.definitions["pipelines"]:
            what = f"the pipelines folder {folder} cannot be read: {error.strerror}"
            report.problems.append(Problem(path, "proxy", "pipelines_path", what, remedy="create it, or name another"))
        return []


def _merge(top: Section, layers: Layers) -> None:
    for kind in DEFINITIONS:
        for name, section in top.table(kind).tables().items():
            _define(layers.definitions[kind], name, section)
    layers.registrations += [top.table(kind) for kind in REGISTRATIONS if kind in top]


def _define(known: dict[str, Section], name: str, section: Section) -> None:
    complaint = checks.name(name)
    if complaint:
        section.problem(None, complaint, "rename it")
    if name in known:
        what = f'"{name}" is defined in {known[name].file} too'
        section.problem(None, what, "names are unique across all files: rename or remove one")
        return
    known[name] = section


def _check_tables(top: Section, more: tuple[str, ...]) -> None:
    """Note every top-level table that has no business in this file."""
    here = (*DEFINITIONS, *REGISTRATIONS, *more)
    top.ignore(WITHOUT_EFFECT, "this is a part of Harmony that harmonyd does not have")
    for name in top:
        if name in OUT_OF_SCOPE:
            top.refuse(name, "out of scope", "a pipeline sends to its backends: write one backend for each target")
        elif name in MAIN_ONLY and name not in here:
            top.refuse(name, "belongs in config.toml", "move it there")
        elif name not in here + WITHOUT_EFFECT:
            top.problem(name, "unknown table", f"known here: {listing(here)}", nearest(name, here))
