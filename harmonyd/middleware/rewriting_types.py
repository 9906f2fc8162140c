"""Builds ``rewrite`` and ``deidentify`` from their validated options."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from harmonyd.config.model import MiddlewareConfig
from harmonyd.middleware.base import Middleware
from harmonyd.middleware.rewriting import Rewriting
from harmonyd.rewriting.blanking import BlankRule, Region
from harmonyd.rewriting.changes import Affix, Hashed, Table
from harmonyd.rewriting.editor import Editor
from harmonyd.rewriting.objects import Objects
from harmonyd.rewriting.profile import Profile, ProfileOptions
from harmonyd.rewriting.pseudonyms import PseudonymOptions, Pseudonyms
from harmonyd.rewriting.report import Report
from harmonyd.rewriting.rewriter import Decode, InThread, Rewriter
from harmonyd.rewriting.rules import Place, Rule, Rules

FOLDER = "rewriting"
"""Below the storage path: the tables of pseudonyms. Retention does not touch it."""


class Resources(Protocol):
    """What they need (``harmonyd.middleware.registry.Resources``)."""

    @property
    def in_thread(self) -> InThread: ...

    @property
    def storage(self) -> Path: ...

    @property
    def decode(self) -> Decode | None: ...


def rewrite(config: MiddlewareConfig, given: Resources) -> Middleware:
    """``type = "rewrite"``."""
    key = config.options["uids"]
    uids = Hashed(_pseudonyms(config, key, given.storage)) if key is not None else None
    editor = Rules([_rule(*each) for each in config.options["rules"]], uids)
    return _built(config, editor, given)


def deidentify(config: MiddlewareConfig, given: Resources) -> Middleware:
    """``type = "deidentify"``."""
    options = config.options
    chosen = ProfileOptions(options["options"], options["descriptors"], options["pseudonyms"])
    return _built(config, Profile(chosen, _pseudonyms(config, options["uids"], given.storage)), given)


def _built(config: MiddlewareConfig, editor: Editor, given: Resources) -> Middleware:
    options: Mapping[str, Any] = config.options
    regions = [
        BlankRule(when, tuple(Region(*each) for each in rectangles), compressed)
        for when, rectangles, compressed in options["regions"]
    ]
    report = Report(options["report_path"], config.name)
    rewriter = Rewriter(config.name, Objects(editor, regions), given.in_thread, report, given.decode)
    to_backend = options["towards"] == "backend"
    return Rewriting(config.name, rewriter, given.storage, to_backend=to_backend, aets=options.get("aets", {}))


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
