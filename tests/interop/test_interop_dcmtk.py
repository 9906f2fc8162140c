"""DCMTK: dcmqrscp and storescp as our peers, echoscu, storescu and dcmsend as our callers."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import pytest_twisted
from interop_kit import (
    DEFLATED,
    JPEG_2000,
    JPEG_2000_LOSSLESS,
    JPEG_BASELINE,
    JPEG_EXTENDED,
    JPEG_LOSSLESS,
    JPEG_LS,
    JPEG_LS_NEAR,
    MOVE_AET,
    RLE,
    SCP_AET,
    STUDY,
    UNCOMPRESSED,
    Gateway,
    Sample,
    equal,
    files_below,
    identical,
    node,
)

from harmonyd.dimse.engine import RemoteNode
from harmonyd.testing.pacs import RunningPacs
from harmonyd.testing.processes import dcmtk, end_group, free_port, port_is_free, wait_until

ENV = {**os.environ, "TCP_NODELAY": "1"}
OPTIONS = {
    "xs": JPEG_LOSSLESS,
    "xy": JPEG_BASELINE,
    "xx": JPEG_EXTENDED,
    "xv": JPEG_2000_LOSSLESS,
    "xw": JPEG_2000,
    "xt": JPEG_LS,
    "xu": JPEG_LS_NEAR,
    "xr": RLE,
    "xd": DEFLATED,
}
"""Of all programs: with a plus accept, with a minus propose one more transfer syntax than the uncompressed ones."""


@pytest.fixture(scope="module")
def dcmqrscp(tmp_path_factory: pytest.TempPathFactory, samples: list[Sample], move_port: int) -> Iterator[RemoteNode]:
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
async def test_get_and_move(gateway: Gateway, dcmqrscp: RemoteNode, samples: list[Sample]) -> None:
    """dcmqrscp as it is sends uncompressed objects; for the others its sub-operations fail, and that is what we say."""
    sent = [sample for sample in samples if sample.transfer_syntax_uid in (*UNCOMPRESSED, DEFLATED)]
    for retrieve in (gateway.get, gateway.move):
        retrieved = await retrieve(dcmqrscp)
        assert not retrieved.outcome.complete
        assert retrieved.outcome.suboperations is not None
        assert retrieved.outcome.suboperations.failed == len(samples) - len(sent)
        equal(sent, retrieved.files, converts={*UNCOMPRESSED, DEFLATED})


@pytest.mark.parametrize("option", OPTIONS)
@pytest_twisted.ensureDeferred
async def test_move_compressed(
    gateway: Gateway, samples: list[Sample], move_port: int, tmp_path: Path, option: str
) -> None:
    """Told to propose a transfer syntax, dcmqrscp moves objects of it.

    It proposes it before the others in one context: what we accept is then good for these objects only.
    """
    chosen = [sample for sample in samples if sample.transfer_syntax_uid == OPTIONS[option]]
    files = [sample.path for sample in chosen]
    syntax = (f"-{option}",)
    with RunningPacs(tmp_path / "pacs", files=files, destinations={MOVE_AET: move_port}, options=syntax) as pacs:
        moved = await gateway.move(node(pacs.aet, pacs.port))
        assert moved.outcome.complete, moved.outcome
        equal(chosen, moved.files)


@pytest_twisted.ensureDeferred
async def test_store(
    gateway: Gateway, storescp: Callable[..., RemoteNode], samples: list[Sample], tmp_path: Path
) -> None:
    """A storescp that takes every transfer syntax and keeps the bytes gets exactly ours."""
    await gateway.store_all(storescp("+xa", "+B"), samples)
    identical(samples, files_below(tmp_path / "stored"))


@pytest_twisted.ensureDeferred
async def test_store_where_only_implicit_is_accepted(
    gateway: Gateway, storescp: Callable[..., RemoteNode], samples: list[Sample], tmp_path: Path
) -> None:
    """Uncompressed objects are converted; of the others each is refused by name."""
    remote = storescp("+xi", "+B")
    results = {result.sop_instance_uid: result for result in await gateway.store(remote, samples)}
    converted = [sample for sample in samples if sample.transfer_syntax_uid in UNCOMPRESSED]
    assert {uid for uid, result in results.items() if result.status == 0} == {
        sample.sop_instance_uid for sample in converted
    }
    assert {result.status_text for result in results.values() if result.status is None} == {
        "not sent: the PACS accepts no presentation context for it"
    }
    equal(converted, files_below(tmp_path / "stored"), converts=UNCOMPRESSED)


# --- our callers


@pytest_twisted.ensureDeferred
async def test_echoscu(gateway: Gateway) -> None:
    """echoscu gets its answer."""
    await gateway.run(dcmtk("echoscu"), "-aec", SCP_AET, "127.0.0.1", await gateway.receive())


@pytest_twisted.ensureDeferred
async def test_dcmsend(gateway: Gateway, samples: list[Sample]) -> None:
    """dcmsend converts the uncompressed ones, and decompresses what it can, when it is not told otherwise."""
    paths = [sample.path for sample in samples]
    port = await gateway.receive()
    await gateway.run(dcmtk("dcmsend"), "-aec", SCP_AET, "-dn", "127.0.0.1", port, *paths, env=ENV)
    equal(samples, gateway.taken.files, converts={*UNCOMPRESSED, DEFLATED})


@pytest.mark.parametrize("option", OPTIONS)
@pytest_twisted.ensureDeferred
async def test_storescu(gateway: Gateway, samples: list[Sample], option: str) -> None:
    """storescu, with uncompressed objects and one more transfer syntax."""
    chosen = [sample for sample in samples if sample.transfer_syntax_uid in (*UNCOMPRESSED, OPTIONS[option])]
    paths = [sample.path for sample in chosen]
    port = await gateway.receive()
    await gateway.run(dcmtk("storescu"), "-R", "-aec", SCP_AET, f"-{option}", "127.0.0.1", port, *paths, env=ENV)
    equal(chosen, gateway.taken.files, converts={*UNCOMPRESSED, DEFLATED})
