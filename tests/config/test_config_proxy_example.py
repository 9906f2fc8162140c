"""``examples/dimse-proxy`` and ``dimse-routing`` have no mistakes, and are what docs/query-retrieve.md says."""

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


def test_the_example_of_many_titles_is_right() -> None:
    """Three titles on one port, each with its own ways."""
    config = load(ROOT / "examples" / "dimse-routing" / "config.toml")
    assert config.warnings == ()
    options = [each.options for each in config.endpoints.values()]
    assert {each.local_aet for each in options} == {"ALL_STUDIES", "ARCHIVE", "STORE"}
    assert {each.port for each in options} == {11112}
