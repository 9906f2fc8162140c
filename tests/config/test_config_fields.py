"""Typed access to one TOML table."""

from __future__ import annotations

from pathlib import Path

import pytest

from harmonyd.config.errors import Problem, Report, nearest
from harmonyd.config.fields import Section


def section(**data: object) -> Section:
    return Section(Report(), Path("f.toml"), "t", data)


@pytest.mark.parametrize("value", [True, 1.0, "1", 0, 11, [1]])
def test_what_is_no_integer_in_range(value):
    """A boolean, a decimal, a string, a list and a number out of range are noted, and the default is returned."""
    table = section(n=value)
    assert table.integer("n", 5, 1, 10) == 5
    assert [problem.key for problem in table.report.problems] == ["n"]


@pytest.mark.parametrize("value", [True, "1", float("nan"), float("inf"), -1])
def test_what_is_no_number_in_range(value):
    """Not-a-number and infinity are out of every range."""
    table = section(n=value)
    assert table.number("n", 5.0, 0, 10) == 5.0
    assert len(table.report.problems) == 1


def test_limits_of_a_range_are_in_it():
    """Both ends of a range are allowed."""
    table = section(low=1, high=10)
    assert (table.integer("low", 5, 1, 10), table.integer("high", 5, 1, 10)) == (1, 10)
    assert table.sound


@pytest.mark.parametrize("value", [1, "true", []])
def test_what_is_no_boolean(value):
    """Only true and false are booleans."""
    table = section(b=value)
    assert table.flag("b", True) is True
    assert not table.sound


@pytest.mark.parametrize("value", ["a", ["a", 1], {"a": 1}])
def test_what_is_no_list_of_strings(value):
    """A lone string is not a list."""
    table = section(names=value)
    assert table.strings("names") == ()
    assert not table.sound


def test_a_name_twice_in_a_list_is_noted():
    """A list of names has each once."""
    table = section(names=["a", "b", "a"])
    table.strings("names")
    assert "twice" in table.report.problems[0].what


def test_an_unknown_choice_gets_the_nearest():
    """A mistyped value is answered with the nearest known one and all of them."""
    table = section(mode="persistant")
    table.choice("mode", "persistent", ["persistent", "transient"])
    problem = table.report.problems[0]
    assert problem.nearest == "persistent"
    assert "transient" in problem.remedy


def test_an_unknown_key_gets_the_nearest_known_one():
    """A mistyped key is answered with the nearest key of that table."""
    table = section(path_prefx="/")
    table.text("path_prefix")
    table.finish()
    problem = table.report.problems[0]
    assert (problem.key, problem.nearest, problem.found) == ("path_prefx", "path_prefix", '"/"')


def test_a_mistake_below_makes_the_table_above_unsound():
    """Soundness of a table includes the tables below it."""
    table = section(options={"n": "x"})
    table.table("options").integer("n", 1, 0, 9)
    assert not table.sound


def test_something_else_in_place_of_a_table():
    """A value where a table belongs is noted once, however often it is asked for."""
    table = section(options=3)
    assert not table.table("options").is_table
    assert not table.table("options").is_table
    assert len(table.report.problems) == 1


@pytest.mark.parametrize("key", ["password", "hs256_secret", "api_key"])
def test_values_of_secret_keys_are_not_shown(key):
    """A secret in the wrong place does not reach the log."""
    table = section(**{key: "hunter2"})
    table.finish()
    assert "hunter2" not in str(table.report.problems[0])


def test_a_problem_is_one_line_whatever_is_in_it():
    """Control characters from a file cannot forge a second line."""
    table = section(**{"a\nb": "c\nd"})
    table.finish()
    assert len(str(table.report.problems[0]).splitlines()) == 1


def test_a_long_value_is_shortened():
    """A message shows the beginning of a long value."""
    table = section(n="x" * 1000)
    table.integer("n", 1, 0, 9)
    assert len(str(table.report.problems[0])) < 200


def test_a_problem_with_a_whole_file_names_only_the_file():
    """Without table and key the line has the file and what is wrong."""
    problem = Problem(Path("f.toml"), "", None, "no such file", remedy="create it")
    assert str(problem) == "f.toml: no such file; create it"


@pytest.mark.parametrize(("name", "expected"), [("Host", "host"), ("hots", "host"), ("zzz", None)])
def test_nearest(name, expected):
    """Nearest ignores case, and is None when nothing is near."""
    assert nearest(name, ["host", "port"]) == expected
