"""``harmonyd check --probe`` believes the answer to a C-ECHO, not the exit code of echoscu."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from harmonyd.check import check
from harmonyd.testing.config_files import write_config
from harmonyd.testing.peer import ScriptedPeer
from harmonyd.testing.processes import free_port


def test_a_failure_status_is_an_error(
    tmp_path: Path, peer: Callable[..., ScriptedPeer], capsys: pytest.CaptureFixture[str]
) -> None:
    """A node that answers with a failure status did not answer well."""
    node = peer("serve", status=0x0122)
    backend = {"aet": node.aet, "host": "127.0.0.1", "port": node.port}
    config = write_config(tmp_path, http_port=free_port(), backends={"pacs": backend})
    assert check(config, probe=True) == 1
    last = capsys.readouterr().out.splitlines()[-2]
    assert last.startswith("error")
    assert "Received Echo Response (Unknown Status: 0x122)" in last
