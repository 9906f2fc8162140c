"""Builds ``rewrite`` and ``deidentify`` from their validated options."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harmonyd.config.model import MiddlewareConfig
from harmonyd.middleware.base import Middleware
from harmonyd.middleware.rewriting import InThread, Rewriting
from harmonyd.rewriting.blanking import BlankRule, Region
from harmonyd.rewriting.changes import Affix, Hashed, Table
from harmonyd.rewriting.editor import Editor
from harmonyd.rewriting.objects import Objects
from harmonyd.rewriting.profile import Profile, ProfileOptions
from harmonyd.rewriting.pseudonyms import PseudonymOptions, Pseudonyms
from harmonyd.rewriting.report import Report
from harmonyd.rewriting.rules import Place, Rule, Rules

FOLDER = "rewriting"
"""Below the storage path: the tables of pseudonyms. Retention does not touch it."""


def rewrite(config: MiddlewareConfig, in_thread: InThread, storage: Path) -> Middleware:
    """``type = "rewrite"``."""
    given = config.options["uids"]
    uids = Hashed(_pseudonyms(config, given, storage)) if given is not None else None
    editor = Rules([_rule(*each) for each in config.options["rules"]], uids)
    return _built(config, editor, in_thread, storage)


def deidentify(config: MiddlewareConfig, in_thread: InThread, storage: Path) -> Middleware:
    """``type = "deidentify"``."""
    options = config.options
    given = ProfileOptions(options["options"], options["descriptors"], options["pseudonyms"])
    return _built(config, Profile(given, _pseudonyms(config, options["uids"], storage)), in_thread, storage)


def _built(config: MiddlewareConfig, editor: Editor, in_thread: InThread, storage: Path) -> Middleware:
    options: Mapping[str, Any] = config.options
    regions = [
        BlankRule(when, tuple(Region(*each) for each in rectangles), compressed)
        for when, rectangles, compressed in options["regions"]
    ]
    return Rewriting(
        config.name,
        Objects(editor, regions),
        in_thread,
        storage,
        to_backend=options["towards"] == "backend",
        aets=options.get("aets", {}),
        report=Report(options["report_path"], config.name),
    )


def _pseudonyms(config: MiddlewareConfig, given: tuple[bytes, int], storage: Path) -> Pseudonyms:
    key, most = given
    return Pseudonyms(PseudonymOptions(key, most), storage / FOLDER / f"{config.name}.sqlite")


def _rule(path: tuple[int, ...], anywhere: bool, vr: str, kind: str, what: Any) -> Rule:
    place = Place(path, anywhere)
    if kind == "affix":
        return Rule(place, vr, Affix(*what))
    if kind == "map":
        return Rule(place, vr, Table(what))
    return Rule(place, vr, None, what)
