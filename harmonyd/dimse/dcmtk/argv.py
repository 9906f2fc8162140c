"""The command lines. Only validated configuration and paths of our own making enter them, never a client's value.

Identifiers travel in a query file. DCMTK replaces an argument that starts with "@" by that file's content, with no way
to escape it: the runner refuses such arguments, and AE titles and hosts cannot start so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from harmonyd.dimse.associate import ARTIM_SECS
from harmonyd.dimse.engine import MoveReceiver, QueryModel, RemoteNode

_MODEL_OPTION = {QueryModel.STUDY_ROOT: "-S", QueryModel.PATIENT_ROOT: "-P", QueryModel.WORKLIST: "-W"}


def _seconds(value: float) -> str:
    return str(max(1, math.ceil(value)))


def _common(tool: Path, log_config: Path, remote: RemoteNode) -> list[str]:
    silence = _seconds(remote.association_timeout_secs)
    return [
        str(tool),
        *("-lc", str(log_config)),
        *("-to", _seconds(remote.connect_timeout_secs)),
        *("-ta", silence, "-td", silence),
        *("-aet", remote.local_aet, "-aec", remote.aet),
        *("-pdu", str(remote.max_pdu)),
    ]


def _socket_timeout(remote: RemoteNode) -> list[str]:
    """``-ts`` bounds the gap between messages too, and its default is 60 s. getscu and movescu lack it."""
    return ["-ts", _seconds(remote.association_timeout_secs)]


def _peer(remote: RemoteNode) -> list[str]:
    return [remote.host, str(remote.port)]


def echoscu(tool: Path, log_config: Path, remote: RemoteNode) -> list[str]:
    return [*_common(tool, log_config, remote), *_socket_timeout(remote), *_peer(remote)]


def findscu(
    tool: Path, log_config: Path, remote: RemoteNode, model: QueryModel, query_file: Path, folder: Path
) -> list[str]:
    options = [*_socket_timeout(remote), _MODEL_OPTION[model], "-X", "-od", str(folder)]
    return [*_common(tool, log_config, remote), *options, *_peer(remote), str(query_file)]


def getscu(
    tool: Path, log_config: Path, remote: RemoteNode, model: QueryModel, query_file: Path, folder: Path
) -> list[str]:
    """Never with ``+B``: it writes to any path a peer's SOP Instance UID names (CVE-2026-50003)."""
    output = ["-od", str(folder)]
    return [*_common(tool, log_config, remote), _MODEL_OPTION[model], *output, *_peer(remote), str(query_file)]


def movescu(
    tool: Path,
    log_config: Path,
    remote: RemoteNode,
    model: QueryModel,
    receiver: MoveReceiver,
    query_file: Path,
    folder: Path | None,
) -> list[str]:
    """``folder`` given: movescu listens itself (``+P``) and writes there; else a store SCP of ours receives."""
    listen = ["+P", str(receiver.port), "+xa", "-od", str(folder)] if folder is not None else []
    return [
        *_common(tool, log_config, remote),
        _MODEL_OPTION[model],
        *("-aem", receiver.destination_aet),
        *listen,
        *_peer(remote),
        str(query_file),
    ]


def storescu(tool: Path, log_config: Path, remote: RemoteNode, profile: Path, files: Sequence[Path]) -> list[str]:
    """``-nh``: one refused instance does not stop the rest."""
    options = [*_socket_timeout(remote), "-nh", "-xf", str(profile), "Default"]
    return [*_common(tool, log_config, remote), *options, *_peer(remote), *map(str, files)]


def storescp_inetd(
    tool: Path, log_config: Path, *, local_aet: str, folder: Path, max_pdu: int, association_timeout_secs: float
) -> list[str]:
    """As ``storescp``, for one association that was accepted already and is its standard input."""
    silence = _seconds(association_timeout_secs)
    return [
        str(tool),
        *("--inetd", "-lc", str(log_config)),
        *("-dhl", "+B", "+uf", "+xa"),
        *("-ta", _seconds(ARTIM_SECS), "-td", silence, "-ts", silence),
        *("-aet", local_aet, "-pdu", str(max_pdu)),
        *("-od", str(folder)),
    ]


def storescp(
    tool: Path,
    *,
    local_aet: str,
    port: int,
    folder: Path,
    max_pdu: int,
    association_timeout_secs: float,
    log_config: Path | None = None,
) -> list[str]:
    """``+B`` keeps every byte, ``+uf`` never overwrites, ``+xa`` takes every transfer syntax as it comes.

    ``-dhl``: callers' names are not looked up, which can take many seconds.
    """
    silence = _seconds(association_timeout_secs)
    return [
        str(tool),
        *(("-v",) if log_config is None else ("-lc", str(log_config))),
        *("-dhl", "+B", "+uf", "+xa"),
        *("-ta", _seconds(ARTIM_SECS), "-td", silence, "-ts", silence),
        *("-aet", local_aet, "-pdu", str(max_pdu)),
        *("-od", str(folder)),
        str(port),
    ]
