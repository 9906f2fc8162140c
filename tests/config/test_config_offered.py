"""``services`` and ``move_destinations`` of a dicom endpoint."""

from __future__ import annotations

import pytest

from harmonyd.config.asking import MoveDestination, are_asked
from harmonyd.config.model import DicomEndpointOptions

PIPELINE = "[pipelines.p]\nendpoints = ['e']\nbackends = ['b']\n[backends.b]\nservice = 'dicom'\n"
BACKEND = PIPELINE + "[backends.b.options]\naet = 'PACS'\nhost = 'pacs'\nport = 104\n"
ENDPOINT = "[endpoints.e]\nservice = 'dicom'\n[endpoints.e.options]\n"
NATIVE = BACKEND + ENDPOINT + "engine = 'native'\n"
MOVE = NATIVE + "services = ['move']\n[endpoints.e.options.move_destinations.WS]\n"


def options(config) -> DicomEndpointOptions:
    return config.endpoints["e"].options


def test_an_endpoint_receives_by_default(loaded):
    """And nobody asks it for anything."""
    found = options(loaded(NATIVE))
    assert (found.services, are_asked(found.services), found.move_destinations) == (("store",), False, {})


def test_what_is_offered(loaded):
    """In one order, whatever the file's is."""
    found = options(loaded(NATIVE + "services = ['get', 'find', 'store']\n"))
    assert (found.services, are_asked(found.services)) == (("store", "find", "get"), True)


def test_destinations_of_moves(loaded):
    """By AE title, with defaults."""
    found = options(loaded(MOVE + "host = 'ws1'\nport = 11113\nconnect_timeout_ms = 2000\n"))
    assert found.move_destinations == {"WS": MoveDestination("ws1", 11113, connect_timeout_secs=2.0)}


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        (NATIVE + "services = ['finds', 'query']\n", ["services", "services"]),
        (NATIVE + "services = []\n", ["services"]),
        (BACKEND + ENDPOINT + "services = ['find']\n", ["services"]),
        (MOVE, ["host", "port"]),
        (MOVE + "host = '-'\nport = 0\naet = 'X'\n", ["host", "port", "aet"]),
        (MOVE.replace(".WS]", ".'a title that is too long']") + "host = 'x'\nport = 1\n", ["a title that is too long"]),
        (NATIVE.replace("backends = ['b']", "backends = []") + "services = ['find']\n", ["backends"]),
    ],
)
def test_mistakes(problems, text, keys):
    """All at once, each at its key."""
    assert [problem.key for problem in problems(text)] == keys


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (NATIVE + "services = ['move']\n", "no move_destinations"),
        (MOVE.replace("'move'", "'find'") + "host = 'x'\nport = 1\n", 'without "move" or "commit"'),
    ],
)
def test_what_an_operator_should_know(loaded, text, said):
    """It is no mistake."""
    [warning] = [each for each in loaded(text).warnings if "services" in each]
    assert said in warning


def test_questions_may_go_to_several(loaded, problems):
    """``fan_out`` needs somebody who asks: a workstation will do."""
    two = "[backends.c]\nservice = 'dicom'\n[backends.c.options]\naet = 'P2'\nhost = 'pacs'\nport = 105\n"
    text = NATIVE.replace("backends = ['b']", "backends = ['b', 'c']\nfan_out = true") + two
    asked = text.replace("engine = 'native'\n", "engine = 'native'\nservices = ['find']\n")
    assert loaded(asked).pipelines["p"].fan_out
    assert [problem.key for problem in problems(text)] == ["fan_out"]


def test_services_are_no_backends(problems):
    """They are of an endpoint."""
    assert [problem.key for problem in problems(BACKEND + "services = ['find']\n" + ENDPOINT)] == ["services"]
