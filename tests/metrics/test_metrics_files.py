"""docs/metrics.md, the alert rules and the dashboard say what is there: held against the table of metrics."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from harmonyd.metrics.families import FAMILIES
from harmonyd.services.dicom.metering import OUTCOMES

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs" / "metrics.md"
RULES = ROOT / "etc" / "prometheus" / "harmonyd-alerts.yml"
DASHBOARD = ROOT / "etc" / "grafana" / "harmonyd.json"
PROCESS = {"process_resident_memory_bytes", "process_cpu_seconds_total", "process_open_fds", "process_max_fds"}
"""Of prometheus_client's, those that are used."""
TARGET = {"job", "instance", "le"}
"""Labels that Prometheus adds, or a histogram has."""
_NAME = re.compile(r"\b((?:harmonyd|process)_\w+)(?:\{([^}]*)})?")
_BY = re.compile(r"\bby \(([^)]*)\)")
_CODE = re.compile(r"`([^`]+)`")


def rows(start: str) -> list[list[str]]:
    """The cells of the table rows that begin with this."""
    lines = [line for line in PAGE.read_text("utf-8").splitlines() if line.startswith(start)]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def rules() -> list[dict[str, Any]]:
    [group] = yaml.safe_load(RULES.read_text("utf-8"))["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text("utf-8"))["panels"]
    return [panel for panel in found if panel["type"] != "row"]


def expressions() -> Iterator[str]:
    """All PromQL that is shipped, with Grafana's interval filled in."""
    yield from (rule["expr"] for rule in rules())
    for panel in panels():
        yield from (target["expr"].replace("$__rate_interval", "5m") for target in panel["targets"])


def samples() -> dict[str, set[str]]:
    """Names as they are asked for, and their labels."""
    found = {name: set[str]() for name in PROCESS}
    for family in FAMILIES.values():
        endings = ("_bucket", "_sum", "_count") if family.kind == "histogram" else ("",)
        found |= {family.name + ending: set(family.labels) for ending in endings}
    return found


def test_the_page_has_each_metric() -> None:
    """Name, type, labels and meaning stand in docs/metrics.md as they are in the table, in the same order."""
    shown = [(_CODE.findall(name), kind, tuple(_CODE.findall(labels)), text)
             for name, kind, labels, text in rows("| `harmonyd_")]  # fmt: skip
    assert shown == [([family.name], family.kind, family.labels, family.text) for family in FAMILIES.values()]


def test_the_page_has_each_outcome() -> None:
    """Each way in which an operation can end is explained."""
    explained = [name.strip("`") for name, *rest in rows("| `") if len(rest) == 2]
    assert sorted(explained) == sorted(OUTCOMES)


def test_the_page_counts_the_alerts() -> None:
    """The number that is said is how many there are."""
    said = re.search(r"(\d+) alerts", PAGE.read_text("utf-8"))
    assert said is not None
    assert int(said[1]) == len(rules())


@pytest.mark.parametrize("expression", list(expressions()))
def test_queries_ask_for_what_is_there(expression: str) -> None:
    """Each is PromQL, of metrics that are exported, by labels that these have."""
    promql_parser.parse(expression)
    known = samples()
    asked = _NAME.findall(expression)
    assert asked or expression.startswith("up{")
    labels: set[str] = set()
    for name, matchers in asked:
        assert name in known
        labels |= known[name]
        assert set(re.findall(r"(\w+)\s*[=!]", matchers)) <= known[name] | TARGET
    for group in _BY.findall(expression):
        assert {label.strip() for label in group.split(",")} <= labels | TARGET


def test_queries_ask_for_outcomes_that_exist() -> None:
    """No alert waits for a word that is never said."""
    said = [words for expression in expressions() for words in re.findall(r'outcome=~?"([^"]*)"', expression)]
    assert said
    assert {word for words in said for word in words.split("|")} <= set(OUTCOMES)


def test_alerts_say_what_to_do() -> None:
    """Each has a name of its own, a severity, a summary and a description that refer only to labels it has."""
    assert len({rule["alert"] for rule in rules()}) == len(rules())
    for rule in rules():
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert set(rule["annotations"]) == {"summary", "description"}
        known = TARGET.union(*(samples()[name] for name, _ in _NAME.findall(rule["expr"])))
        kept = [set(map(str.strip, group.split(","))) for group in _BY.findall(rule["expr"])]
        used = set(re.findall(r"\$labels\.(\w+)", " ".join(rule["annotations"].values())))
        assert used <= (set.intersection(*kept) if kept else known)


def test_the_dashboard_lays_panels_beside_each_other() -> None:
    """No two panels cover the same place, and each has an id and a title of its own in its row."""
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels()]
    assert len(set(places)) == len(places)
    assert len({panel["id"] for panel in panels()}) == len(places)
