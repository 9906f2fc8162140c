"""Options of Storage Commitment."""

from __future__ import annotations

import pytest

from harmonyd.config.errors import ConfigError

PIPELINE = "[pipelines.p]\nendpoints = ['e']\nbackends = ['b']\n[backends.b]\nservice = 'dicom'\n[backends.b.options]\n"
BACKEND = PIPELINE + "aet = 'PACS'\nhost = 'pacs'\nport = 104\n"
ENDPOINT = "[endpoints.e]\nservice = 'dicom'\n[endpoints.e.options]\nengine = 'native'\n"


def test_defaults(loaded):
    """Nobody is asked, and the spool lets go of what is stored."""
    config = loaded(BACKEND + ENDPOINT)
    backend, endpoint = config.backends["b"].options, config.endpoints["e"].options
    assert (backend.commit, backend.release) == ("off", "stored")
    assert (backend.commit_timeout_secs, backend.commit_hold_secs) == (3600.0, 5.0)
    assert (endpoint.commit_wait_secs, endpoint.commit_report_secs) == (600.0, 172800.0)
    assert endpoint.commit_same_association


def test_what_is_set(loaded):
    """In both roles."""
    native = "engine = 'native'\ncommit = 'after_forwarding'\nrelease = 'committed'\ncommit_timeout_ms = 1000\n"
    more = "services = ['store', 'commit', 'mpps']\ncommit_wait_secs = 5\ncommit_same_association = false\n"
    config = loaded(BACKEND + native + ENDPOINT + more)
    backend, endpoint = config.backends["b"].options, config.endpoints["e"].options
    assert (backend.commit, backend.release, backend.commit_timeout_secs) == ("after_forwarding", "committed", 1.0)
    assert (endpoint.services, endpoint.commit_wait_secs) == (("store", "commit", "mpps"), 5.0)
    assert not endpoint.commit_same_association


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        (BACKEND + "commit = 'after_forwarding'\n" + ENDPOINT, ["commit"]),
        (BACKEND + "engine = 'native'\nrelease = 'committed'\n" + ENDPOINT, ["release"]),
        (BACKEND + "commit = 'always'\ncommit_hold_ms = -1\n" + ENDPOINT, ["commit", "commit_hold_ms"]),
        (BACKEND + "commit_wait_secs = 1\n" + ENDPOINT, ["commit_wait_secs"]),
        (BACKEND + ENDPOINT + "commit = 'off'\ncommit_wait_secs = 'x'\n", ["commit", "commit_wait_secs"]),
        (BACKEND + ENDPOINT.replace("native", "dcmtk") + "services = ['commit']\n", ["services"]),
    ],
)
def test_mistakes(loaded, text, keys):
    """Each is named."""
    with pytest.raises(ConfigError) as caught:
        loaded(text)
    assert sorted(problem.key for problem in caught.value.problems) == sorted(keys)


def test_what_has_no_effect(loaded):
    """It is said: who is not known cannot be called, and a key without its service does nothing."""
    warnings = loaded(BACKEND + ENDPOINT + "services = ['commit']\n").warnings
    assert any("no move_destinations" in warning for warning in warnings)
    warnings = loaded(BACKEND + ENDPOINT + "commit_wait_secs = 5\n").warnings
    assert any('without "commit"' in warning for warning in warnings)
