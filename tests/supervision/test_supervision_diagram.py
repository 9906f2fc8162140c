"""The diagram of a kept child's life."""

from __future__ import annotations

import re
from pathlib import Path

from harmonyd.supervision.diagram import diagram
from harmonyd.supervision.states import TABLE

PAGE = Path(__file__).parents[2] / "docs" / "operations.md"


def test_the_documentation_shows_the_table() -> None:
    """The diagram in the documentation is the one that is made from the table."""
    shown = re.search(r"```mermaid\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    assert shown is not None
    assert shown.group(1) == diagram(), "print it with: python -m harmonyd.supervision.diagram"


def test_every_entry_of_the_table_is_an_arrow() -> None:
    """Read back, the diagram has each state and event of the table, and no other."""
    arrows = re.findall(r"^ +(\w+) --> (\w+): (.*)$", diagram(), re.MULTILINE)
    read = {(start, name, end) for start, end, names in arrows for name in names.split(", ")}
    assert read == {(state, event.name, to) for state, row in TABLE.items() for event, (to, _) in row.items()}
