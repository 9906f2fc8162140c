"""What is made of instances: once, for all who ask."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from cache_fakes import FakePacs
from twisted.internet.defer import Deferred

from harmonyd.cache.made import MAX_DOCUMENTS, MAX_HASHED_BYTES, Made
from harmonyd.dimse.engine import Instance


@pytest.fixture
def pacs(tmp_path: Path) -> FakePacs:
    return FakePacs(tmp_path)


@pytest.fixture
def results(pacs: FakePacs) -> Any:
    pacs.kept()
    return pacs.done(pacs.ask())


def text(path: Path) -> bytes:
    """Blocking, as what makes metadata of a file is."""
    return json.dumps({"of": path.name}).encode()


def test_a_text_is_made_once(pacs: FakePacs, results: Any) -> None:
    """Those who ask while it is made, one of whom leaves, and those who ask later."""
    made: Made = results.made
    release: Deferred[None] = Deferred()
    calls: list[Path] = []

    async def later(function: Any, *args: Any) -> Any:
        await release
        return function(*args)

    def make(path: Path) -> bytes:
        calls.append(path)
        return text(path)

    made.in_thread = later
    [instance, _] = results.chosen
    waiting = [Deferred.fromCoroutine(made.text(instance, make)) for _ in range(3)]
    waiting[0].addErrback(lambda _: None)
    waiting[0].cancel()
    release.callback(None)
    assert [pacs.done(each) for each in waiting[1:]] == [b'{"of": "1.2.3.1"}'] * 2
    assert pacs.done(made.text(instance, make)) == b'{"of": "1.2.3.1"}'
    assert len(calls) == 1


def test_who_waits_is_told_what_went_wrong(pacs: FakePacs, results: Any) -> None:
    """The next one tries it again."""

    def fail(_path: Path) -> bytes:
        raise ValueError("not DICOM")

    with pytest.raises(ValueError, match="not DICOM"):
        pacs.done(results.made.text(results.chosen[0], fail))
    assert pacs.done(results.made.text(results.chosen[0], text)) == b'{"of": "1.2.3.1"}'


def document(pacs: FakePacs, results: Any, name: str = "a", *, gzipped: bool = False) -> Any:
    made = results.made.document(name, results.chosen, text, lambda data: data + b" ", gzipped=gzipped)
    return pacs.done(made)


def test_a_document_has_all_and_a_tag_of_its_content(pacs: FakePacs, results: Any) -> None:
    """In gzip it is another one; made again it has the same tag."""
    plain, packed = document(pacs, results), document(pacs, results, gzipped=True)
    assert json.loads(plain.path.read_bytes()) == [{"of": "1.2.3.1"}, {"of": "1.2.3.2"}]
    assert gzip.decompress(packed.path.read_bytes()) == plain.path.read_bytes()
    assert plain.length == plain.path.stat().st_size
    assert plain.etag != packed.etag
    assert document(pacs, results, "other").etag == plain.etag


def test_documents_are_few(pacs: FakePacs, results: Any) -> None:
    """Their names are the clients' choice; all count as what is kept, and go with it."""
    before = pacs.cache.figures()["bytes"]
    made = [document(pacs, results, f"d{number}") for number in range(MAX_DOCUMENTS + 3)]
    assert sum(each.path.exists() for each in made) == MAX_DOCUMENTS
    files = [path for path in results.entry.derived.iterdir() if path.name != "entry.json"]
    assert pacs.cache.figures()["bytes"] - before == sum(path.stat().st_size for path in files)
    pacs.done(results.aclose())
    pacs.done(pacs.cache.clear())
    assert pacs.cache.figures()["bytes"] == 0


def test_fingerprints_are_of_content(pacs: FakePacs, results: Any, tmp_path: Path) -> None:
    """Of a big file only of its retrieve."""
    first, second = results.chosen
    twin = tmp_path / "twin"
    twin.write_bytes(first.path.read_bytes())
    same = Instance(twin, "1.9", "1.2.3.9", "1.2", first.size_bytes)
    prints = [pacs.done(results.made.fingerprint(each)) for each in (first, second, same)]
    assert prints[0] == prints[2]
    assert prints[0] != prints[1]
    big = Instance(tmp_path / "missing", "1.9", "1.2.3.8", "1.2", MAX_HASHED_BYTES + 1)
    assert results.entry.id in pacs.done(results.made.fingerprint(big))
