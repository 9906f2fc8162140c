"""Writing harmonyd's configuration for a test: ``config.toml`` and ``pipelines/test.toml``."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

Table = Mapping[str, Any]
ENGINE_VARIABLE = "HARMONYD_TEST_ENGINE"
"""Environment: the ``engine`` of each dicom endpoint and backend that names none, so that tests run over either.

The native one then keeps no association open between operations, as with DCMTK's programs.
"""
DEFAULT_ENDPOINTS: Table = {"http": {"service": "http", "path_prefix": "/dicom"}}


def write_config(
    folder: Path,
    *,
    http_port: int,
    backends: Table,
    endpoints: Table | None = None,
    middleware: Table | None = None,
    pipelines: Table | None = None,
    sections: Table | None = None,
) -> Path:
    """Write a configuration into ``folder`` and return the path of its ``config.toml``.

    ``backends`` and ``endpoints`` map names to their options, with ``service`` beside them (default for a backend:
    ``dicom``); ``middleware`` maps names to their tables, in the order of the chain. Without ``pipelines`` there is
    one, ``test``, of all of them; without ``endpoints`` an HTTP one at ``/dicom``. ``sections`` are tables for
    config.toml that are added to, or replace keys of, its own (``{"limits": {...}}``).
    """
    endpoints = DEFAULT_ENDPOINTS if endpoints is None else endpoints
    middleware = middleware or {}
    pipeline = {
        "description": "for a test",
        "networks": ["default"],
        "endpoints": list(endpoints),
        "middleware": list(middleware),
        "backends": list(backends),
    }
    pipelines_file = {
        "pipelines": {"test": pipeline} if pipelines is None else pipelines,
        "endpoints": {name: _with_options(given, {}) for name, given in endpoints.items()},
        "backends": {
            name: _with_options({"service": "dicom", **given}, {"association_idle_ms": 0})
            for name, given in backends.items()
        },
        "middleware": middleware,
    }
    main_file = _merged(_main_file(http_port), sections or {})
    (folder / "pipelines").mkdir(parents=True, exist_ok=True)
    (folder / "pipelines" / "test.toml").write_text(to_toml(pipelines_file), "utf-8")
    config = folder / "config.toml"
    config.write_text(to_toml(main_file), "utf-8")
    return config


def _main_file(http_port: int) -> dict[str, Any]:
    return {
        "proxy": {"id": "test", "log_level": "debug", "pipelines_path": "pipelines"},
        "network": {"default": {"http": {"bind_address": "127.0.0.1", "bind_port": http_port}}},
        "logging": {"format": "json"},
        "storage": {"backend": "filesystem", "options": {"path": "./tmp"}},
    }


def _with_options(given: Table, for_native: Table) -> dict[str, Any]:
    """``service`` and everything else below ``options``, where the configuration wants it."""
    options = {key: given[key] for key in given if key != "service"}
    engine = os.environ.get(ENGINE_VARIABLE)
    if engine and given["service"] == "dicom":
        options = {"engine": engine, **(for_native if engine == "native" else {}), **options}
    return {"service": given["service"], "options": options}


def _merged(own: dict[str, Any], given: Table) -> dict[str, Any]:
    merged = dict(own)
    for key, value in given.items():
        below = merged.get(key)
        merged[key] = _merged(below, value) if isinstance(below, dict) and isinstance(value, Mapping) else value
    return merged


def to_toml(tables: Table) -> str:
    """TOML 1.0 text of nested mappings, lists, strings, numbers and booleans."""
    return "".join(_lines(tables, ()))


def _lines(table: Table, path: tuple[str, ...]) -> Iterator[str]:
    plain = {key: value for key, value in table.items() if not isinstance(value, Mapping)}
    if path and (plain or not table):
        yield f"\n[{'.'.join(map(_quoted, path))}]\n"
    for key, value in plain.items():
        yield f"{_quoted(key)} = {_value(value)}\n"
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _lines(value, (*path, key))


def _quoted(text: str) -> str:
    """A basic string; JSON's escapes are a subset of TOML's, which does not allow DEL as it is."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_quoted(key)} = {_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    return _quoted(value) if isinstance(value, str) else str(value)


def http_address(config: Path) -> tuple[str, int]:
    """Address and port of the first HTTP network in a configuration."""
    networks = tomllib.loads(config.read_text("utf-8"))["network"]
    http = next(network["http"] for network in networks.values() if "http" in network)
    return str(http["bind_address"]), int(http["bind_port"])


def listening_ports(config: Path) -> set[int]:
    """Every port on which a daemon with this configuration may listen."""
    ports: set[int] = set()
    for path in (config, *sorted((config.parent / "pipelines").glob("*.toml"))):
        tables = tomllib.loads(path.read_text("utf-8"))
        ports.update(_ports("bind_port", *(network.get("http", {}) for network in _below(tables, "network"))))
        ports.update(_ports("port", *(endpoint.get("options", {}) for endpoint in _below(tables, "endpoints"))))
        ports.update(_ports("incoming_store_port", *(item.get("options", {}) for item in _below(tables, "backends"))))
    return ports


def _below(tables: Table, key: str) -> list[Table]:
    return list(tables.get(key, {}).values())


def _ports(key: str, *tables: Table) -> Iterator[int]:
    return (int(table[key]) for table in tables if key in table)
