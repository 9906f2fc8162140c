"""What a changed configuration means: the names of what differs, and what needs a restart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harmonyd.config import load
from harmonyd.config.model import Config
from harmonyd.control.api import Changes
from harmonyd.daemon import diff
from harmonyd.daemon.named import listeners
from harmonyd.testing.config_files import write_config

Change = Callable[..., Config]
PACS = {"aet": "PACS", "host": "pacs", "port": 104}
BACKENDS: dict[str, dict[str, Any]] = {"pacs": PACS, "answer": {"service": "echo"}}
ENDPOINTS: dict[str, dict[str, Any]] = {
    "http": {"service": "http", "path_prefix": "/dicom"},
    "receive": {"service": "dicom", "port": 11112},
}


@pytest.fixture
def config(tmp_path: Path) -> Change:
    """A configuration: ``config(**arguments of write_config)``."""

    def make(**arguments: Any) -> Config:
        given = {"http_port": 8080, "backends": BACKENDS, "endpoints": ENDPOINTS, **arguments}
        return load(write_config(tmp_path, **given))

    return make


def test_equal_configurations_have_no_changes(config: Change) -> None:
    """What is read twice is the same."""
    assert diff.changes(config(), config()) == Changes()
    assert diff.refused(config(), config()) == []


def test_a_route_is_a_change_of_its_pipeline(config: Change) -> None:
    """Another path, other methods or other middleware leave everything else as it is."""
    path = {**ENDPOINTS, "http": {"service": "http", "path_prefix": "/other"}}
    assert diff.changes(config(), config(endpoints=path)) == Changes(changed=("pipeline:test",))
    middleware = {"nothing": {"type": "passthru"}}
    assert diff.changes(config(), config(middleware=middleware)) == Changes(changed=("pipeline:test",))


def test_a_store_scp_is_changed_by_what_its_process_is_told(config: Change) -> None:
    """Port and AE title need another process; where objects are kept is the pipeline's affair."""
    for option in ({"port": 11113}, {"local_aet": "OTHER"}):
        endpoints = {**ENDPOINTS, "receive": {**ENDPOINTS["receive"], **option}}
        assert diff.changes(config(), config(endpoints=endpoints)) == Changes(changed=("storescp:receive",))
    endpoints = {**ENDPOINTS, "receive": {**ENDPOINTS["receive"], "storage_dir": "./kept"}}
    assert diff.changes(config(), config(endpoints=endpoints)) == Changes(changed=("pipeline:test",))


def test_what_comes_and_goes_has_its_name(config: Change) -> None:
    """A backend, a receiver, and the pipeline that names them."""
    endpoints = {"http": ENDPOINTS["http"], "other": {"service": "dicom", "port": 11112}}
    found = diff.changes(config(), config(endpoints=endpoints, backends={"pacs": PACS, "new": {"service": "echo"}}))
    assert found == Changes(
        added=("storescp:other", "backend:new"),
        changed=("pipeline:test",),
        removed=("storescp:receive", "backend:answer"),
    )


def test_a_receiver_for_moves_has_its_name_when_it_starts_with_the_daemon(config: Change) -> None:
    """One that starts with the first move comes and goes with its backend."""
    named = {**BACKENDS, "pacs": {**PACS, "incoming_store_port": 11130}}
    moved = {**BACKENDS, "pacs": {**PACS, "incoming_store_port": 11131}}
    assert diff.changes(config(backends=named), config(backends=moved)) == Changes(
        added=("storescp:incoming-11131",), changed=("backend:pacs",), removed=("storescp:incoming-11130",)
    )
    assert diff.changes(config(backends=named), config()).removed == ("storescp:incoming-11130",)


def test_listeners_and_settings(config: Change) -> None:
    """Each table that stands alone has a name, too."""
    sections = {"limits": {"max_connections": 7}, "supervision": {"probe_misses": 3}, "proxy": {"id": "other"}}
    found = diff.changes(config(), config(sections=sections, http_port=8081))
    assert found == Changes(changed=("network:default", "settings:id", "settings:limits", "settings:supervision"))
    network = {"extra": {"http": {"bind_address": "127.0.0.1", "bind_port": 8082}}}
    assert diff.changes(config(), config(sections={"network": network})).added == ("network:extra",)


def test_who_is_trusted_needs_no_new_listener(config: Change) -> None:
    """It is a change of the network, and none that needs a restart or another socket."""
    trusting = config(sections={"network": {"default": {"http": {"trusted_proxies": ["10.0.0.0/8"]}}}})
    assert diff.changes(config(), trusting) == Changes(changed=("network:default",))
    assert listeners(trusting) == listeners(config())


def test_what_a_pacs_is_spared_is_a_change_of_its_backend(config: Change) -> None:
    """The same breaker, spelled out, is none."""

    def changed(**options: Any) -> Changes:
        return diff.changes(config(), config(backends={**BACKENDS, "pacs": {**PACS, **options}}))

    assert changed(breaker={"failures": 5}) == Changes()
    for option in ({"breaker": {"failures": 6}}, {"permitted_hours": ["18:00-07:00"]}, {"selectivity": {}}):
        assert changed(**option) == Changes(changed=("backend:pacs",))


def test_rules_and_folders_are_changes_of_their_own(config: Change) -> None:
    """Another rule concerns the pipeline only, another folder the backend that keeps objects there."""

    def made(folder: str = "a", pattern: str = "CT") -> Config:
        rule = {"when": {"00080060": pattern}, "backends": ["kept"]}
        backends = {**BACKENDS, "kept": {"service": "storage", "path": folder}}
        return config(backends=backends, middleware={"by": {"type": "route", "rules": [rule]}})

    assert diff.changes(made(), made(pattern="MR")) == Changes(changed=("pipeline:test",))
    assert diff.changes(made(), made("b")) == Changes(changed=("backend:kept",))


def test_an_unused_definition_is_no_change(config: Change) -> None:
    """Only what a pipeline names is there."""
    pipelines = {"test": {"networks": ["default"], "endpoints": ["http"], "backends": ["answer"]}}
    one = config(pipelines=pipelines)
    other = config(pipelines=pipelines, backends={**BACKENDS, "pacs": {**PACS, "port": 105}})
    assert diff.changes(one, other) == Changes()


def test_a_backend_that_http_clients_come_to_reach_is_changed(config: Change) -> None:
    """From then on it may move, and needs a receiver for that."""
    inbound = {"networks": [], "endpoints": ["receive"], "backends": ["pacs"]}
    both = {"inbound": inbound, "ask": {"networks": ["default"], "endpoints": ["http"], "backends": ["pacs"]}}
    assert "backend:pacs" in diff.changes(config(pipelines={"inbound": inbound}), config(pipelines=both)).changed


def test_names_are_known(config: Change) -> None:
    """A name, and the group of one."""
    assert all(diff.has_name(config(), name) for name in ("storescp:receive", "storescp", "pipeline:test"))
    assert not any(diff.has_name(config(), name) for name in ("storescp:other", "stores", ""))


def test_what_needs_a_restart(config: Change) -> None:
    """Storage path and control interface; each problem names its key, says why, and never shows a password."""
    old = config()
    sections = {
        "storage": {"options": {"path": "./elsewhere"}},
        "control": {"mode": "0600", "socket": "./other.sock"},
    }
    problems = diff.refused(old, config(sections=sections))
    assert [(problem.table, problem.key) for problem in problems] == [
        ("storage.options", "path"), ("control", "socket"), ("control", "mode"),
    ]  # fmt: skip
    assert all(str(problem).endswith("restart harmonyd to use this") for problem in problems)
    secret = replace(old, control=replace(old.control, password="secret"))
    assert "secret" not in str(diff.refused(old, secret)[0])


def test_sockets_from_systemd_need_a_restart(config: Change) -> None:
    """They are passed at the start only, and one that is given up would leave clients hanging."""
    passed = {"network": {"default": {"http": {"bind_address": "systemd:http"}}}}
    for old, new in ((config(), config(sections=passed)), (config(sections=passed), config())):
        [problem] = diff.refused(old, new)
        assert (problem.table, problem.key) == ("network.default.http", "bind_address")


def test_http_cannot_take_a_port_from_a_store_scp(config: Change) -> None:
    """It is bound before anything is ended."""
    [problem] = diff.refused(config(), config(http_port=11112, endpoints={"http": ENDPOINTS["http"]}))
    assert problem.key == "bind_port"
    assert "storescp:receive" in problem.what
