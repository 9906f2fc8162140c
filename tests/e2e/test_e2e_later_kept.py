"""Operations that outlive their requests, over the cache: what is counted, what is shared, and what a cancel ends."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cache_kit import CountingArchive, Reading, cache_folder, path_to, series_of
from dicomweb_kit import PREFIX, Gateway, Reply, dicomweb_over
from later_kit import ASYNC, Later, assert_no_fault
from pydicom import Dataset

from harmonyd.testing.processes import wait_until

FILES = 'multipart/related; type="application/dicom"'
JSON = "application/dicom+json"
COUNT = 5


@pytest.fixture(scope="module")
def peer() -> Iterator[CountingArchive]:
    with CountingArchive([]) as running:
        yield running


@pytest.fixture(scope="module")
def web(peer: CountingArchive, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with dicomweb_over(tmp_path_factory.mktemp("web"), peer.backend) as running:
        yield running
        assert_no_fault(running.daemon)


@pytest.fixture
def series(peer: CountingArchive) -> Iterator[list[Dataset]]:
    """A series of its own for each test; the counters begin anew."""
    peer.datasets = series_of(COUNT)
    peer.gets.clear()
    peer.ended = 0
    yield peer.datasets
    peer.release()


def later(web: Gateway, path: str, accept: str = FILES, **headers: str) -> Later:
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    given = {**ASYNC, "Accept": accept, **fields}
    return Later(web.daemon, web.daemon.http("GET", PREFIX + path, headers=given))


def until_first(operation: Later) -> None:
    """Wait until one instance has come, and the PACS has said how many will."""
    wait_until(lambda: (state := operation.state)["instances"] == 1 and state["suboperations"], "the first came", 30)


@pytest.mark.parametrize(
    ("below", "rest", "accept", "count"),
    [
        ("study", "", FILES, COUNT),
        ("series", "", "application/zip", COUNT),
        ("series", "/metadata", JSON, COUNT),
        ("instance", "", "application/dicom", 1),
        ("instance", "/metadata", JSON, 1),
    ],
)
def test_instances_are_counted_once(
    web: Gateway, peer: CountingArchive, series: list[Dataset], below: str, rest: str, accept: str, count: int
) -> None:
    """Cold, and from what is kept; whatever the answer is made of, it is whole."""
    path = path_to(series[0], below=below)
    states = [later(web, path + rest, accept).end() for _ in range(2)]
    sizes = [len(content) for _, content in web.ask(path, FILES).parts()]
    for state in states:
        assert (state["state"], state["success"], state["complete"]) == ("complete", True, True), state
        assert "incomplete_reason" not in state
        assert (state["instances"], state["bytes"]) == (count, sum(sizes))
    assert states[0]["suboperations"] == {"completed": count, "failed": 0, "warning": 0, "remaining": 0}
    expected = ["IMAGE", "SERIES"] if below == "instance" else [below.upper()]
    wait_until(lambda: peer.gets == expected, "the PACS is asked once, and for the series of an instance")


def test_two_share_a_retrieve(web: Gateway, peer: CountingArchive, series: list[Dataset]) -> None:
    """Both are told how it stands; one of them is cancelled, and that ends nothing for the other, or for a viewer."""
    peer.hold()
    first, second = (later(web, path_to(series[0])) for _ in range(2))
    for operation in (first, second):
        until_first(operation)
    viewer = Reading(web, path_to(series[0]))
    assert viewer.began.wait(30)
    assert first.delete().json()["state"] == "cancelled"
    peer.release()
    state = second.end()
    assert (state["state"], state["instances"]) == ("complete", COUNT)
    assert state["suboperations"]["completed"] == COUNT
    assert first.state["instances"] == 1, "what is cancelled is told nothing more"
    assert len(viewer.result().parts()) == COUNT
    assert peer.gets == ["SERIES"]


def test_a_cancel_ends_the_retrieve(web: Gateway, peer: CountingArchive, series: list[Dataset]) -> None:
    """What nobody else reads is not completed for who might come; the next one asks the PACS again."""
    peer.hold()
    operation = later(web, path_to(series[0]))
    until_first(operation)
    before = len(list(cache_folder(web).glob("dcmtk_get_*")))
    assert operation.delete().json()["state"] == "cancelled"
    wait_until(lambda: len(list(cache_folder(web).glob("dcmtk_get_*"))) < before, "what had arrived was removed")
    peer.release()
    assert len(web.ask(path_to(series[0]), FILES).parts()) == COUNT
    assert (peer.gets, peer.ended) == (["SERIES", "SERIES"], 1)


def test_half_of_fifty_leave(web: Gateway, peer: CountingArchive, series: list[Dataset]) -> None:
    """The others get all of one retrieve, and nobody else's end is theirs."""
    peer.hold()
    watched = [later(web, path_to(series[0])) for _ in range(5)]
    viewers = [Reading(web, path_to(series[0])) for _ in range(45)]
    for viewer in viewers:
        assert viewer.began.wait(30)
    for viewer in viewers[::2]:
        viewer.leave()
    for operation in watched[::2]:
        until_first(operation)
        operation.delete()
    peer.release()
    for viewer in viewers[1::2]:
        assert len(viewer.result().parts()) == COUNT
    assert [operation.end()["instances"] for operation in watched[1::2]] == [COUNT, COUNT]
    assert peer.gets == ["SERIES"]


def test_the_result_is_for_whoever_fetches_it(web: Gateway, series: list[Dataset]) -> None:
    """Codings, parts and conditions of the first request are not those of the result."""
    path = f"{path_to(series[0])}/metadata"
    web.ask(path_to(series[0]), FILES)
    tag = web.ask(path, JSON).headers["ETag"]
    operation = later(web, path, JSON, Accept_Encoding="gzip", If_None_Match=tag, Range="bytes=0-9")
    assert operation.end()["result"]["status"] == 200
    plain = operation.get("/result")
    assert (plain.status, plain.headers.get("Content-Encoding")) == (200, None)
    assert plain.headers["ETag"] == tag
    assert len(json.loads(plain.body)) == COUNT
    packed = operation.get("/result", Accept_Encoding="gzip")
    assert (packed.headers["Content-Encoding"], packed.headers["ETag"]) == ("gzip", f"W/{tag}")
    assert gzip.decompress(packed.body) == plain.body
    part = operation.get("/result", Range="bytes=0-9", If_Range=tag, Accept_Encoding="gzip")
    assert (part.status, part.body, part.headers.get("Content-Encoding")) == (206, plain.body[:10], None)
    whole = operation.get("/result", Range="bytes=0-9", If_Range=f"W/{tag}")
    assert (whole.status, whole.body) == (200, plain.body), "a weak tag is none of bytes"


def test_without_a_cache(tmp_path: Path, peer: CountingArchive, series: list[Dataset]) -> None:
    """Counts are the same, and the operation's folder has its id."""
    with dicomweb_over(tmp_path, peer.backend, {"cache": {"enabled": False}}) as web:
        operation = later(web, path_to(series[0]))
        state = operation.end()
        assert (state["instances"], state["success"], state["complete"]) == (COUNT, True, True)
        assert (tmp_path / "tmp" / f"dcmtk_get_{operation.id}").is_dir()


@pytest.mark.root
def test_on_a_full_disk_the_cache_gives_way(tmp_path: Path, peer: CountingArchive) -> None:
    """A result takes the room of what is only kept; one that does not fit even so is 507."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40M", "tmpfs", str(disk)], check=True)
    try:
        peer.datasets = [*(first := series_of(COUNT, size=512)), *(second := series_of(COUNT, size=512))]
        sections = {"storage": {"options": {"path": str(disk)}}, "cache": {"min_free_mb": 1}}
        with dicomweb_over(tmp_path / "web", peer.backend, sections) as web:
            size = sum(len(content) for _, content in web.ask(path_to(first[0]), FILES).parts())
            web.ask(path_to(second[0]), FILES)
            wait_until(lambda: len(manifests(disk)) == 2, "both are kept")
            (disk / "filler").write_bytes(bytes(free_bytes(disk) - size // 2))
            operation = later(web, path_to(second[0]))
            assert operation.end()["state"] == "complete"
            assert len(multipart_of(operation)) == COUNT
            wait_until(lambda: not manifests(disk), "nothing is kept any more")
            (disk / "rest").write_bytes(bytes(max(0, free_bytes(disk) - 3 * size // 2)))
            state = later(web, path_to(first[0])).end()
            assert (state["state"], state["problem"]["status"]) == ("failed", 507)
            (disk / "filler").unlink()
            assert later(web, path_to(first[0])).end()["state"] == "complete"
            assert_no_fault(web.daemon)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def manifests(disk: Path) -> list[Path]:
    """Of what is kept."""
    return list(disk.glob("cache/*.kept/entry.json"))


def free_bytes(disk: Path) -> int:
    space = os.statvfs(disk)
    return space.f_bavail * space.f_frsize


def multipart_of(operation: Later) -> list[tuple[dict[str, str], bytes]]:
    """The parts of a result."""
    answer = operation.get("/result")
    return Reply(answer.status, answer.headers, answer.body).parts()
