"""The table of ``states`` as a diagram for people: ``python -m harmonyd.supervision.diagram`` prints it.

docs/operations.md shows it; a test holds the two together.
"""

from __future__ import annotations

from harmonyd.supervision.states import TABLE, State


def diagram() -> str:
    """The life of a kept child in Mermaid's language. An arrow has the names of all events that lead its way."""
    arrows: dict[tuple[State, State], list[str]] = {}
    for state, row in TABLE.items():
        for event, (target, _) in row.items():
            arrows.setdefault((state, target), []).append(event.name)
    lines = [f"{start} --> {end}: {', '.join(names)}" for (start, end), names in arrows.items()]
    return "\n    ".join(["stateDiagram-v2", f"[*] --> {State.STOPPED}", *lines]) + "\n"


if __name__ == "__main__":
    print(diagram(), end="")
