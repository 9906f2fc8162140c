"""The documentation says what is there: links, commands, configuration keys, kinds of errors, and messages."""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import pkgutil
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import harmonyd
from harmonyd import cli, config
from harmonyd.errors import HarmonydError
from harmonyd.web.problem import problem

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md"))]
PACKAGE = Path(harmonyd.__file__).parent

_LINK = re.compile(r"\[[^]]*]\(([^)\s]+)\)")
_COMMAND = re.compile(r"^\s*(?:\$ |sudo )?(?:\.venv/bin/)?harmonyd ([a-z]+(?:-[a-z]+)*)\b([^|#\n]*)")
_FLAG = re.compile(r"(?<!\S)(--?[a-z][a-z-]*)")
_CODE = re.compile(r"`([^`]+)`")
_URN = "urn:harmonyd:problem:"
_BOGUS = "zz-nothing-like-it"


def text_of(page: Path) -> str:
    return page.read_text("utf-8")


def id_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def code_in(text: str) -> Iterator[str]:
    """Each line of a code block, and each piece of code in a line of text."""
    fenced = False
    for line in text.splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            yield line
        else:
            yield from _CODE.findall(line)


# --- links ---


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", text_of(page), re.MULTILINE)
    plain = [re.sub(r"[`*]|\[([^]]*)]\([^)]*\)", r"\1", heading) for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=id_of)
def test_links_lead_somewhere(page: Path) -> None:
    """Each relative link leads to a file or folder that exists, and to a heading in it."""
    dead = []
    for link in _LINK.findall(text_of(page)):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if "://" in link or link.startswith("mailto:"):
            continue
        if not target.exists() or (anchor and anchor not in anchors(target)):
            dead.append(link)
    assert dead == []


def test_every_page_is_linked_from_the_readme() -> None:
    """No page of the documentation has to be known to be found."""
    linked = {(ROOT / link).resolve() for link in _LINK.findall(text_of(PAGES[0])) if "://" not in link}
    assert [id_of(page) for page in PAGES[1:] if page not in linked and page.parent not in linked] == []


# --- commands ---


def commands() -> dict[str, set[str]]:
    """The subcommands and their flags, those of their own subcommands too."""
    return {name: flags_of(parser) for name, parser in subcommands(cli._parser()).items()}


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    below = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return {name: command for action in below for name, command in action.choices.items()}


def flags_of(parser: argparse.ArgumentParser) -> set[str]:
    own = {flag for action in parser._actions for flag in action.option_strings}
    return own.union(*map(flags_of, subcommands(parser).values()))


@pytest.mark.parametrize("page", PAGES, ids=id_of)
def test_commands_exist(page: Path) -> None:
    """Each ``harmonyd SUBCOMMAND --flag``, and each ``make TARGET``, in code can be typed."""
    known = commands()
    targets = set(re.findall(r"^([a-z]+):", text_of(ROOT / "Makefile"), re.MULTILINE))
    unknown = []
    for code in code_in(text_of(page)):
        for name, rest in _COMMAND.findall(code):
            unknown += [f"{name} {flag}" for flag in _FLAG.findall(rest) if flag not in known.get(name, set())]
            unknown += [] if name in known else [name]
        unknown += [f"make {target}" for target in re.findall(r"\bmake ([a-z]+)", code) if target not in targets]
    assert unknown == []


# --- configuration ---


TABLES_IN_TABLES = (
    *("tls.", "oauth2.", "incoming_store_tls.", "user_identity.", "acknowledge_status.", "breaker.", "selectivity."),
    "move_destinations.",
)


def documented_keys() -> dict[str, set[str]]:
    """The keys in the tables of docs/configuration.md, by TOML table; not those of ``TABLES_IN_TABLES``."""
    found: dict[str, set[str]] = {}
    above = heading = ""
    for line in text_of(ROOT / "docs" / "configuration.md").splitlines():
        if line.startswith("## "):
            above, heading = line[3:].strip().lower(), ""
        elif line.startswith("### "):
            heading = line
        elif line.startswith("| `") and (table := _table(above, heading)) is not None:
            names = _CODE.findall(line.split("|")[1])
            if names[0].startswith(TABLES_IN_TABLES):
                continue
            if names[0].startswith("["):
                table = names.pop(0).strip("[]")
            found.setdefault(table, set()).update(names)
    return found


def _table(above: str, heading: str) -> str | None:
    """``endpoints.dicom.options`` for ``service = "dicom"`` below "Endpoints", ``limits`` for ``[limits]``."""
    if kind := re.search(r'`(?:service|type) = "(\w+)"`', heading):
        return f"middleware.{kind[1]}" if above == "middleware" else f"{above}.{kind[1]}.options"
    named = re.search(r"`\[([^]]+)]`", heading)
    return named[1] if named else None


def accepted_keys(folder: Path, tables: list[str]) -> dict[str, set[str]]:
    """What harmonyd says it knows in each of these tables, when it is given a key that it does not know."""
    lines = [f'[{part}.{kind}]\nservice = "{kind}"' for part, kind in _services(tables)]
    for table in tables:
        lines += [f"[{table}]", f"{_BOGUS} = 1"]
        if table.startswith("middleware."):
            lines.append(f'type = "{table.partition(".")[2]}"')
    (folder / "config.toml").write_text("\n".join(lines) + "\n", "utf-8")
    with pytest.raises(config.ConfigError) as raised:
        config.load(folder / "config.toml")
    unknown = [item for item in raised.value.problems if item.key == _BOGUS and item.what == "unknown key"]
    return {item.table: set(item.remedy.removeprefix("known here: ").split(", ")) for item in unknown}


def _services(tables: list[str]) -> list[tuple[str, str]]:
    parts = [table.split(".") for table in tables if table.endswith(".options")]
    return [(part[0], part[1]) for part in parts if part[0] in ("endpoints", "backends")]


def test_configuration_keys_are_those_of_the_reference(tmp_path: Path) -> None:
    """Each key in the tables of docs/configuration.md is accepted, and each that is accepted stands there."""
    documented = documented_keys()
    documented["endpoints.echo.options"] = documented["endpoints.http.options"]
    documented["network.NAME"] |= {"http", "dicom"}
    accepted = accepted_keys(tmp_path, sorted(documented))
    accepted["storage"].discard("options")
    accepted["telemetry"].discard("tracing")
    for table in [name for name in accepted if name.startswith("middleware.")]:
        accepted[table] -= {"options", "type"}
    assert accepted == documented


# --- errors ---


@cache
def kinds() -> dict[str, type[HarmonydError]]:
    """Every class of error by the name that it has in ``type``."""
    for module in pkgutil.walk_packages(harmonyd.__path__, "harmonyd."):
        if not module.name.endswith("__main__") and "peer_dicom" not in module.name:
            importlib.import_module(module.name)
    known = {kind.__name__: kind for kind in _below(HarmonydError) if kind.__module__.startswith("harmonyd.")}
    known["InternalError"] = known.pop(HarmonydError.__name__)
    return {re.sub(r"(?<=[a-z])(?=[A-Z])", "-", name).lower(): kind for name, kind in known.items()}


def _below(kind: type[HarmonydError]) -> Iterator[type[HarmonydError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from _below(below)


@pytest.mark.parametrize("page", PAGES, ids=id_of)
def test_problem_types_exist(page: Path) -> None:
    """Each problem type that a page spells out is one that can be answered."""
    named = re.findall(rf"{_URN}([a-z-]+)", text_of(page))
    assert [name for name in named if name not in kinds()] == []


def test_the_table_of_errors_is_right() -> None:
    """Status, type and fault in the table of docs/http-api.md are those of the error classes."""
    rows = re.findall(r"^\| (\d{3}) \|.*?\| ([^|]*) \| (\w+) \|$", text_of(ROOT / "docs" / "http-api.md"), re.MULTILINE)
    assert len(rows) > 10
    for status, types, fault in rows:
        for name in _CODE.findall(types):
            status_now, _, body = problem(kinds()[name](""), request_id="", operation=None)
            members = json.loads(body)
            assert (members["type"], str(status_now), members["fault"]) == (_URN + name, status, fault)


@cache
def messages() -> list[re.Pattern[str]]:
    """Every text in the code that is long enough to be a message; what is filled in matches anything."""
    patterns = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(text_of(path))):
            parts = node.values if isinstance(node, ast.JoinedStr) else [node]
            fixed = [part.value if isinstance(part, ast.Constant) else None for part in parts]
            if sum(len(part) for part in fixed if isinstance(part, str)) >= 8:
                patterns.add("".join(re.escape(part) if isinstance(part, str) else ".*" for part in fixed))
    return [re.compile(pattern, re.DOTALL) for pattern in sorted(patterns)]


QUOTED = re.compile(r'"(?:detail|hint|incomplete_reason)": "((?:[^"\\]|\\.)*)"')


@pytest.mark.parametrize("page", PAGES, ids=id_of)
def test_quoted_messages_are_in_the_code(page: Path) -> None:
    """Each detail, hint and reason that a page quotes is one the code can produce."""
    quoted = {json.loads(f'"{text}"') for text in QUOTED.findall(text_of(page)) if "…" not in text}
    assert [text for text in sorted(quoted) if not any(pattern.fullmatch(text) for pattern in messages())] == []
