"""What the demo prints: headings, commands to paste, and answers that fit on a screen."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

SHOWN_ITEMS = 1
SHOWN_ATTRIBUTES = 9
_MAX_VALUE_CHARS = 150
_WIDTH = 76


def say(text: str = "") -> None:
    """Print at once, also into a pipe."""
    print(text, flush=True)


def heading(text: str) -> None:
    """Print a heading with an empty line before it."""
    say(f"\n== {text} {'=' * max(2, _WIDTH - len(text))}\n")


def facts(pairs: Mapping[str, str]) -> None:
    """Print names and values in two columns."""
    for name, value in pairs.items():
        say(f"  {name:<10} {value}")


def answer(members: Mapping[str, Any]) -> str:
    """An answer as it came, a member a line, long lists and data sets cut."""
    lines = ",\n".join(f"  {json.dumps(key)}: {_member(value)}" for key, value in members.items())
    return f"{{\n{lines}\n}}"


def _member(value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "\n".join(_items(value))
    return _line(value)


def _items(items: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield "["
    for item in items[:SHOWN_ITEMS]:
        yield "    {"
        shown = list(item.items())[:SHOWN_ATTRIBUTES]
        yield from (f"      {json.dumps(tag)}: {_line(value)}," for tag, value in shown)
        yield f"      … {len(item) - len(shown)} more attributes" if len(item) > len(shown) else "      "
        yield "    }"
    if len(items) > SHOWN_ITEMS:
        yield f"    … {len(items) - SHOWN_ITEMS} more"
    yield "  ]"


def _line(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _MAX_VALUE_CHARS else text[:_MAX_VALUE_CHARS] + "…"
