"""``examples/dimse-proxy`` is a configuration without mistakes, and what docs/query-retrieve.md says of it."""

from __future__ import annotations

from pathlib import Path

from harmonyd.config.load import load

ROOT = Path(__file__).parent.parent.parent


def test_the_example_is_right() -> None:
    """Nothing in it is wrong, or without effect."""
    config = load(ROOT / "examples" / "dimse-proxy" / "config.toml")
    assert config.warnings == ()
    options = config.endpoints["workstations"].options
    assert (options.services, set(options.move_destinations)) == (("find", "get", "move"), {"READING_ROOM"})
