"""Options that protect a PACS, middleware that limits callers, and the proxies that are trusted."""

from __future__ import annotations

import pytest
from config_kit import MAIN, Loaded, Problems

from harmonyd.config.model import DicomBackendOptions
from harmonyd.config.sparing import BreakerOptions, SelectivityOptions
from harmonyd.hours import Hours, parse_window

BACKEND = "[backends.b]\nservice = 'dicom'\n[backends.b.options]\naet = 'A'\nhost = 'h'\nport = 104\n"
TABLE = "backends.b.options"


def options_of(loaded: Loaded, text: str = "") -> DicomBackendOptions:
    options = loaded(BACKEND + text).backends["b"].options
    assert isinstance(options, DicomBackendOptions)
    return options


def test_the_defaults(loaded: Loaded) -> None:
    """A breaker; no hours, no echo and no rule for queries that nobody asked for."""
    options = options_of(loaded)
    assert options.breaker == BreakerOptions(5, 10, 60)
    assert (options.hours, options.health_echo_secs, options.selectivity) == (None, 0, None)


def test_all_of_them(loaded: Loaded) -> None:
    """Each reaches the model."""
    text = """
breaker = { failures = 3, open_secs = 90 }
health_echo_secs = 30
permitted_hours = ["Mon-Fri 18:00-07:00", "Sat,Sun 00:00-24:00"]
permitted_hours_for = ["retrieve"]
permitted_hours_zone = "Europe/Berlin"
selectivity = { keys = ["PatientID", "StudyDate"], min_letters = 4, max_days = 7 }
"""
    options = options_of(loaded, text)
    assert options.breaker == BreakerOptions(3, 90, 90)
    assert options.health_echo_secs == 30
    windows = tuple(map(parse_window, ("Mon-Fri 18:00-07:00", "Sat,Sun 00:00-24:00")))
    assert options.hours == Hours(windows, "Europe/Berlin", ("retrieve",))
    assert options.selectivity == SelectivityOptions(("PatientID", "StudyDate"), 4, 7)


def test_an_empty_table_switches_selectivity_on(loaded: Loaded) -> None:
    """With its defaults."""
    assert options_of(loaded, "selectivity = {}").selectivity == SelectivityOptions()


@pytest.mark.parametrize(
    ("text", "table", "key"),
    [
        ("breaker = 5", TABLE, "breaker"),
        ("breaker = { failures = -1 }", f"{TABLE}.breaker", "failures"),
        ("breaker = { open_secs = 0 }", f"{TABLE}.breaker", "open_secs"),
        ("breaker = { open_secs = 60, max_open_secs = 10 }", f"{TABLE}.breaker", "max_open_secs"),
        ("breaker = { opens = 1 }", f"{TABLE}.breaker", "opens"),
        ("health_echo_secs = 0.5", TABLE, "health_echo_secs"),
        ("permitted_hours = 'always'", TABLE, "permitted_hours"),
        ("permitted_hours = []", TABLE, "permitted_hours"),
        ("permitted_hours = ['at night']", TABLE, "permitted_hours"),
        ("permitted_hours_zone = 'UTC'", TABLE, "permitted_hours_zone"),
        ("permitted_hours_for = ['find']", TABLE, "permitted_hours_for"),
        ("permitted_hours = ['18:00-07:00']\npermitted_hours_zone = 'Mars/Base'", TABLE, "permitted_hours_zone"),
        ("permitted_hours = ['18:00-07:00']\npermitted_hours_zone = '../etc'", TABLE, "permitted_hours_zone"),
        ("permitted_hours = ['18:00-07:00']\npermitted_hours_for = ['get']", TABLE, "permitted_hours_for"),
        ("selectivity = true", TABLE, "selectivity"),
        ("selectivity = { keys = [] }", f"{TABLE}.selectivity", "keys"),
        ("selectivity = { keys = ['PatientIdd'] }", f"{TABLE}.selectivity", "keys"),
        ("selectivity = { keys = ['PixelData'] }", f"{TABLE}.selectivity", "keys"),
        ("selectivity = { min_letters = 0 }", f"{TABLE}.selectivity", "min_letters"),
    ],
)
def test_mistakes(problems: Problems, text: str, table: str, key: str) -> None:
    """Each is told at its key, and alone."""
    assert [(problem.table, problem.key) for problem in problems(BACKEND + text)] == [(table, key)]


def test_they_are_no_keys_of_an_endpoint(problems: Problems) -> None:
    """An SCP asks nobody."""
    [problem] = problems("[endpoints.e]\nservice = 'dicom'\noptions = { breaker = {} }")
    assert (problem.key, "dicom backend" in problem.what) == ("breaker", True)


def test_limits_of_callers(loaded: Loaded) -> None:
    """A burst is as many as the requests unless it is named."""
    text = "[middleware.r]\ntype = 'rate_limit'\nrequests = 120\n[middleware.c]\ntype = 'concurrency'\nlimit = 4\n"
    links = loaded(text + "by = 'address'").middleware
    assert links["r"].options == {
        "requests": 120,
        "per_secs": 60.0,
        "burst": 120,
        "by": "subject",
        "max_callers": 10_000,
    }
    assert links["c"].options == {"limit": 4, "by": "address"}


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("type = 'rate_limit'", "requests"),
        ("type = 'rate_limit'\nrequests = 0", "requests"),
        ("type = 'rate_limit'\nrequests = 1\nby = 'name'", "by"),
        ("type = 'concurrency'", "limit"),
        ("type = 'concurrency'\nlimit = 1\nburst = 1", "burst"),
    ],
)
def test_mistakes_of_limits(problems: Problems, text: str, key: str) -> None:
    """A limit of its own has to be named."""
    assert [problem.key for problem in problems(f"[middleware.m]\n{text}\n")] == [key]


def test_proxies_that_are_trusted(loaded: Loaded, problems: Problems) -> None:
    """Addresses and blocks of them."""
    proxies = loaded(main=MAIN + "trusted_proxies = ['10.0.0.0/8', '::1']").networks["default"].trusted_proxies
    assert proxies == ("10.0.0.0/8", "::1")
    for wrong in ("proxy.example", "10.0.0.1/8", "*"):
        [problem] = problems(main=MAIN + f"trusted_proxies = ['{wrong}']")
        assert (problem.table, problem.key) == ("network.default.http", "trusted_proxies")
