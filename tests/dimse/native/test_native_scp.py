"""A store SCP of the native engine: what it does in its own way; see also ``test_store_scp``."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest
import pytest_twisted
from raw_scu import ASSOCIATE_AC, RELEASE_RP, RawScu
from sender_kit import ENV, refused

from harmonyd.testing.processes import dcmtk


@pytest_twisted.ensureDeferred
async def test_echo(native: Any) -> None:
    """C-ECHO is answered with Success."""
    running = await native()
    command = [dcmtk("echoscu"), "-aec", "SCP", "127.0.0.1", str(running.port)]
    assert (await running.in_thread(lambda: subprocess.run(command, env=ENV, check=False))).returncode == 0


@pytest.mark.parametrize("limit", ["max_associations", "max_associations_per_peer"])
@pytest_twisted.ensureDeferred
async def test_limits(native: Any, eventually: Any, limit: str) -> None:
    """An association too many is refused for now; when one has ended the next is accepted."""
    running = await native(**{limit: 1})
    with RawScu(running.port) as scu:
        assert (await running.in_thread(scu.associate))[0] == ASSOCIATE_AC
        _, content, _ = await running.in_thread(refused, running.port)
        assert tuple(content[1:]) == (2, 3, 2)
        assert await running.in_thread(scu.release) == RELEASE_RP
        # Over is over, whether or not the peer closes its connection.
        with RawScu(running.port) as next_scu:
            assert (await running.in_thread(next_scu.associate))[0] == ASSOCIATE_AC


@pytest_twisted.ensureDeferred
async def test_all_addresses(native: Any) -> None:
    """Who listens on both protocols' every address still knows an IPv4 peer by its IPv4 address."""
    running = await native(bind_addr="::", max_associations_per_peer=1)
    with RawScu(running.port) as scu:
        assert (await running.in_thread(scu.associate))[0] == ASSOCIATE_AC
        assert running.listener.count(running.scp, "127.0.0.1") == 1
