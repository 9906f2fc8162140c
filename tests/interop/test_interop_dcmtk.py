"""DCMTK: dcmqrscp and storescp as our peers, echoscu, storescu and dcmsend as our callers."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import pytest_twisted
from interop_kit import BIG_ENDIAN, DEFLATED, MOVE_AET, SCP_AET, STUDY, UNCOMPRESSED, Gateway, Sample
from interop_kit import equal, files_below, identical, node

from harmonyd.dimse.engine import RemoteNode
from harmonyd.testing.pacs import RunningPacs
from harmonyd.testing.processes import dcmtk, end_group, free_port, port_is_free, wait_until

ENV = {**os.environ, "TCP_NODELAY": "1"}


@pytest.fixture(scope="module")
def dcmqrscp(
    tmp_path_factory: pytest.TempPathFactory, samples: list[Sample], move_port: int
) -> Iterator[RemoteNode]:
    """With the samples; it may move to us."""
    files = [sample.path for sample in samples]
    folder = tmp_path_factory.mktemp("dcmqrscp")
    with RunningPacs(folder, files=files, destinations={MOVE_AET: move_port}) as pacs:
        yield node(pacs.aet, pacs.port)


@pytest.fixture
def storescp(tmp_path: Path) -> Iterator[Callable[..., RemoteNode]]:
    """``storescp("+xa")``: one with these options, which writes to ``tmp_path / "stored"``."""
    folder = tmp_path / "stored"
    folder.mkdir()
    with ExitStack() as stack:

        def start(*options: str) -> RemoteNode:
            port = free_port()
            argv = [dcmtk("storescp"), *options, "-od", str(folder), str(port)]
            process = subprocess.Popen(argv, env=ENV, stdin=subprocess.DEVNULL, start_new_session=True)
            stack.callback(end_group, process)
            wait_until(lambda: not port_is_free(port), "storescp listens")
            return node("STORESCP", port)

        yield start


# --- our peers


@pytest_twisted.ensureDeferred
async def test_echo(gateway: Gateway, dcmqrscp: RemoteNode) -> None:
    """C-ECHO to dcmqrscp."""
    assert (await gateway.echo(dcmqrscp)).status == 0


@pytest_twisted.ensureDeferred
async def test_find(gateway: Gateway, dcmqrscp: RemoteNode, samples: list[Sample]) -> None:
    """C-FIND on every level."""
    (study,) = await gateway.find(dcmqrscp, StudyInstanceUID="")
    assert study["StudyInstanceUID"] == STUDY
    series = await gateway.find(dcmqrscp, "SERIES", StudyInstanceUID=STUDY, SeriesInstanceUID="", Modality="")
    assert {"CT", "MR", "RTPLAN"} <= {each["Modality"] for each in series}
    found = [
        image["SOPInstanceUID"]
        for each in series
        for image in await gateway.find(
            dcmqrscp, "IMAGE", StudyInstanceUID=STUDY, SeriesInstanceUID=each["SeriesInstanceUID"], SOPInstanceUID=""
        )
    ]
    assert sorted(found) == sorted(sample.sop_instance_uid for sample in samples)


@pytest_twisted.ensureDeferred
async def test_get(gateway: Gateway, dcmqrscp: RemoteNode, samples: list[Sample]) -> None:
    """C-GET of the whole study."""
    got = await gateway.get(dcmqrscp)
    assert got.outcome.complete, got.outcome
    equal(samples, got.files)


@pytest_twisted.ensureDeferred
async def test_move(gateway: Gateway, dcmqrscp: RemoteNode, samples: list[Sample]) -> None:
    """C-MOVE of the whole study."""
    moved = await gateway.move(dcmqrscp)
    assert moved.outcome.complete, moved.outcome
    equal(samples, moved.files)


@pytest_twisted.ensureDeferred
async def test_store(gateway: Gateway, storescp: Callable[..., RemoteNode], samples: list[Sample], tmp_path: Path) -> None:
    """A storescp that takes every transfer syntax and keeps the bytes gets exactly ours."""
    await gateway.store_all(storescp("+xa", "+B"), samples)
    identical(samples, files_below(tmp_path / "stored"))


# --- our callers


@pytest_twisted.ensureDeferred
async def test_echoscu(gateway: Gateway) -> None:
    """echoscu gets its answer."""
    await gateway.run(dcmtk("echoscu"), "-aec", SCP_AET, "127.0.0.1", await gateway.receive())


@pytest_twisted.ensureDeferred
async def test_dcmsend(gateway: Gateway, samples: list[Sample]) -> None:
    """dcmsend, which proposes each object's own transfer syntax."""
    port = await gateway.receive()
    await gateway.run(dcmtk("dcmsend"), "-aec", SCP_AET, "127.0.0.1", port, *[sample.path for sample in samples], env=ENV)
    equal(samples, gateway.taken.files)
