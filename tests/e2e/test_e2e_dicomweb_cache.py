"""The cache of a DICOMweb endpoint: how often the PACS is asked, and that what is given out is right."""

from __future__ import annotations

import gzip
import json
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from cache_kit import CountingArchive, Reading, cache_folder, kept, path_to, series_of
from cli_kit import COMMAND
from dicomweb_kit import PREFIX, Gateway, dicomweb_over
from pydicom import Dataset, dcmread
from pydicom.filebase import DicomBytesIO
from pynetdicom import AE

from harmonyd.testing.config_files import write_config
from harmonyd.testing.daemon import RunningDaemon
from harmonyd.testing.processes import free_port, wait_until

OCTETS = 'multipart/related; type="application/octet-stream"'
MANAGED = {"management": {"enabled": True, "network": "default"}}
NONE_AHEAD = {"cache": {"max_prefetches": 0}}


@pytest.fixture(scope="module")
def peer() -> Iterator[CountingArchive]:
    with CountingArchive([]) as running:
        yield running


@pytest.fixture(scope="module")
def web(peer: CountingArchive, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with dicomweb_over(tmp_path_factory.mktemp("web"), peer.backend, MANAGED) as running:
        yield running


@pytest.fixture
def series(peer: CountingArchive) -> Iterator[list[Dataset]]:
    """A series of its own for each test; the counters begin anew."""
    peer.datasets = series_of(5)
    peer.gets.clear()
    peer.ended = 0
    peer.fails = False
    yield peer.datasets
    peer.release()


def uids_in(body: Any) -> list[str]:
    return sorted(dcmread(DicomBytesIO(content)).SOPInstanceUID for _, content in body.parts())


def all_uids(datasets: list[Dataset]) -> list[str]:
    return sorted(ds.SOPInstanceUID for ds in datasets)


# --- one retrieve for all


def test_one_retrieve_for_all_who_ask_at_once(web: Gateway, peer: CountingArchive, series: list[Dataset]) -> None:
    """All stream from the first instance on, while the PACS was asked once."""
    peer.hold()
    readers = [Reading(web, path_to(series[0])) for _ in range(8)]
    for reader in readers:
        assert reader.began.wait(30)
    peer.release()
    for reader in readers:
        assert uids_in(reader.result()) == all_uids(series)
    assert peer.gets == ["SERIES"]


def test_a_second_request_does_not_ask_the_pacs(web: Gateway, peer: CountingArchive, series: list[Dataset]) -> None:
    """Instances, metadata, frames, bulk data and pictures come from what is there."""
    assert uids_in(web.ask(path_to(series[0]))) == all_uids(series)
    wait_until(lambda: web.ask(f"{path_to(series[0])}/metadata").headers["ETag"], "it is kept")
    assert uids_in(web.ask(path_to(series[0]))) == all_uids(series)
    for ds in series:
        one = path_to(ds, below="instance")
        [(_, pixels)] = web.ask(f"{one}/frames/1", OCTETS).parts()
        assert pixels == ds.PixelData
        [(_, bulk)] = web.ask(f"{one}/bulkdata/7FE00010", OCTETS).parts()
        assert bulk == ds.PixelData
        assert web.ask(f"{one}/rendered", "image/png").body.startswith(b"\x89PNG")
        assert dcmread(DicomBytesIO(web.ask(one, "application/dicom").body)) == ds
    assert peer.gets == ["SERIES"]


def test_who_leaves_ends_nothing_for_others(web: Gateway, peer: CountingArchive, series: list[Dataset]) -> None:
    """One of two readers goes away in the middle; the other gets all."""
    peer.hold()
    leaver, stayer = (Reading(web, path_to(series[0])) for _ in range(2))
    assert leaver.began.wait(30)
    assert stayer.began.wait(30)
    leaver.leave()
    peer.release()
    assert uids_in(stayer.result()) == all_uids(series)
    assert peer.gets == ["SERIES"]


def test_what_nobody_reads_any_more_is_completed(web: Gateway, peer: CountingArchive, series: list[Dataset]) -> None:
    """The last reader leaves in the middle: the rest is retrieved ahead, for who comes next."""
    peer.hold()
    reader = Reading(web, path_to(series[0]))
    assert reader.began.wait(30)
    reader.leave()
    peer.release()
    wait_until(lambda: peer.ended == 1, "the C-GET was completed")
    assert uids_in(web.ask(path_to(series[0]))) == all_uids(series)
    assert peer.gets == ["SERIES"]


def test_nothing_goes_on_for_nobody(tmp_path: Path, peer: CountingArchive, series: list[Dataset]) -> None:
    """With max_prefetches = 0 the last one to leave ends the retrieve; nothing of it is given out later."""
    with dicomweb_over(tmp_path, peer.backend, NONE_AHEAD) as web:
        peer.hold()
        reader = Reading(web, path_to(series[0]))
        assert reader.began.wait(30)
        reader.leave()
        wait_until(lambda: not list(cache_folder(web).glob("dcmtk_get_*")), "what had arrived was removed")
        peer.release()
        assert uids_in(web.ask(path_to(series[0]))) == all_uids(series)
        assert peer.gets == ["SERIES", "SERIES"]
        peer.datasets = other = series_of(2)
        for ds in other:
            web.ask(f"{path_to(ds, below='instance')}/frames/1")
        assert peer.gets == ["SERIES", "SERIES", "IMAGE", "IMAGE"], "and no series is retrieved ahead"


# --- ahead


def test_the_rest_of_a_series_comes_by_itself(web: Gateway, peer: CountingArchive, series: list[Dataset]) -> None:
    """One frame is asked for: it comes first, by itself; then the series, and further frames cost nothing."""
    peer.hold()
    one = path_to(series[4], below="instance")
    assert web.ask(f"{one}/frames/1", OCTETS).parts()[0][1] == series[4].PixelData
    wait_until(lambda: peer.gets == ["IMAGE", "SERIES"], "the series is asked for")
    peer.release()
    wait_until(lambda: peer.ended == 2, "the series is there")
    for ds in series:
        assert web.ask(f"{path_to(ds, below='instance')}/frames/1", OCTETS).parts()[0][1] == ds.PixelData
    assert peer.gets == ["IMAGE", "SERIES"]


def test_a_frame_does_not_wait_for_a_slow_series(web: Gateway, peer: CountingArchive, series: list[Dataset]) -> None:
    """Its series is arriving, and it is not there yet: after a while it is asked for by itself."""
    peer.hold()
    reader = Reading(web, path_to(series[0]))
    assert reader.began.wait(30)
    assert web.ask(f"{path_to(series[3], below='instance')}/frames/1", OCTETS).parts()[0][1] == series[3].PixelData
    assert peer.gets == ["SERIES", "IMAGE"]


def test_thumbnails_bring_no_series(web: Gateway, peer: CountingArchive, series: list[Dataset]) -> None:
    """A list of series with a picture of each does not retrieve them all."""
    assert web.ask(f"{path_to(series[0])}/thumbnail", "image/jpeg").status == 200
    assert web.ask(f"{path_to(series[0])}/thumbnail", "image/jpeg").status == 200
    assert peer.gets == ["IMAGE"]
    assert figures(web)["retrieving"] == 0


# --- what may be given out


def test_what_is_not_complete_is_not_kept(web: Gateway, peer: CountingArchive, series: list[Dataset]) -> None:
    """A sub-operation fails: the answer is cut, and the next one asks the PACS anew."""
    peer.fails = True
    with closing(web.daemon.connect()) as connection:
        response = web.daemon.send(connection, "GET", PREFIX + path_to(series[0]))
        with pytest.raises(Exception, match="IncompleteRead"):
            response.read()
    peer.fails = False
    assert uids_in(web.ask(path_to(series[0]))) == all_uids(series)
    assert peer.gets == ["SERIES", "SERIES"]


def test_what_is_stored_through_us_is_seen_at_once(web: Gateway, peer: CountingArchive, series: list[Dataset]) -> None:
    """STOW-RS into a study that is kept: the next request has the new instance."""
    peer.datasets = series[:4]
    assert uids_in(web.ask(path_to(series[0]))) == all_uids(series[:4])
    assert len(json.loads(web.ask(f"{path_to(series[0])}/metadata").body)) == 4
    buffer = DicomBytesIO()
    series[4].save_as(buffer, enforce_file_format=True)
    stored = web.ask("/studies", method="POST", body=buffer.getvalue(), Content_Type="application/dicom")
    assert stored.status == 200
    assert uids_in(web.ask(path_to(series[0]))) == all_uids(series)
    assert len(json.loads(web.ask(f"{path_to(series[0])}/metadata").body)) == 5
    assert peer.gets == ["SERIES", "SERIES"]


def test_what_a_modality_sends_through_us_is_seen(
    tmp_path: Path, peer: CountingArchive, series: list[Dataset]
) -> None:
    """C-STORE to an endpoint whose pipeline leads to the PACS."""
    peer.datasets = series[:4]
    port, http_port = free_port(), free_port()
    scp = {"service": "dicom", "local_aet": "GATE", "port": port, "bind_addr": "127.0.0.1", "engine": "native"}
    endpoints = {"web": {"service": "dicomweb", "path_prefix": PREFIX}, "scp": scp}
    config = write_config(tmp_path, http_port=http_port, backends={"pacs": peer.backend}, endpoints=endpoints)
    with RunningDaemon(config) as daemon:
        web = Gateway(daemon, http_port)
        assert uids_in(web.ask(path_to(series[0]))) == all_uids(series[:4])
        modality = AE("CT")
        modality.add_requested_context(series[4].SOPClassUID, series[4].file_meta.TransferSyntaxUID)
        association = modality.associate("127.0.0.1", port, ae_title="GATE")
        assert association.send_c_store(series[4]).Status == 0
        association.release()
        wait_until(lambda: uids_in(web.ask(path_to(series[0]))) == all_uids(series), "the new instance is seen")
        assert peer.gets == ["SERIES", "SERIES"]


def test_many_who_want_another_transfer_syntax(web: Gateway, peer: CountingArchive, series: list[Dataset]) -> None:
    """Each has a file of its own for that, and nothing of it stays."""
    web.ask(path_to(series[0]))
    accept = 'multipart/related; type="application/dicom"; transfer-syntax=1.2.840.10008.1.2'
    with ThreadPoolExecutor(6) as pool:
        replies = list(pool.map(lambda _: web.ask(path_to(series[0]), accept), range(6)))
    for reply in replies:
        assert uids_in(reply) == all_uids(series)
        pixels = {dcmread(DicomBytesIO(content)).PixelData for _, content in reply.parts()}
        assert pixels == {ds.PixelData for ds in series}
    assert not list(cache_folder(web).glob("*/*.transcoded"))
    assert peer.gets == ["SERIES"]


def test_a_pacs_that_breaks_off(web: Gateway, peer: CountingArchive, series: list[Dataset]) -> None:
    """In the middle of a series: all readers are told, and the next one gets everything."""
    peer.hold()
    readers = [Reading(web, path_to(series[0])) for _ in range(3)]
    for reader in readers:
        assert reader.began.wait(30)
    peer.abort()
    for reader in readers:
        reader.join(30)
        assert reader.reply is None
    peer.release()
    assert uids_in(web.ask(path_to(series[0]))) == all_uids(series)
    assert peer.gets == ["SERIES", "SERIES"]


def test_an_instance_that_came_later_is_found(web: Gateway, peer: CountingArchive, series: list[Dataset]) -> None:
    """The PACS got it from elsewhere: who asks for it gets it, and the series that lacks it is not given out again."""
    peer.datasets = series[:4]
    assert uids_in(web.ask(path_to(series[0]))) == all_uids(series[:4])
    peer.datasets = series
    assert web.ask(f"{path_to(series[4], below='instance')}/frames/1").status == 200
    assert uids_in(web.ask(path_to(series[0]))) == all_uids(series)


def test_a_study_is_kept_for_those_who_want_a_part(web: Gateway, peer: CountingArchive, series: list[Dataset]) -> None:
    """A study that was retrieved has its series and instances."""
    other = series_of(2, study=series[0].StudyInstanceUID)
    peer.datasets = series + other
    assert uids_in(web.ask(path_to(series[0], below="study"))) == all_uids(series + other)
    assert uids_in(web.ask(path_to(other[0]))) == all_uids(other)
    assert len(json.loads(web.ask(f"{path_to(series[0])}/metadata").body)) == 5
    assert web.ask(f"{path_to(other[1], below='instance')}/frames/1").status == 200
    assert peer.gets == ["STUDY"]


def test_what_is_too_old_is_asked_for_again(tmp_path: Path, peer: CountingArchive, series: list[Dataset]) -> None:
    """The PACS may have changed."""
    with dicomweb_over(tmp_path, peer.backend, {"cache": {"max_age_minutes": 0.01}}) as web:
        web.ask(path_to(series[0]))
        peer.datasets = series[:2]
        wait_until(lambda: len(web.ask(path_to(series[0])).parts()) == 2, "the PACS is asked again")


def test_the_least_recently_used_goes(tmp_path: Path, peer: CountingArchive, series: list[Dataset]) -> None:
    """Of what is more than max_gb together."""
    first, second, third = (series_of(4, size=224) for _ in range(3))
    peer.datasets = first + second + third
    with dicomweb_over(tmp_path, peer.backend, {"cache": {"max_gb": 0.001}}) as web:
        for datasets in (first, second, first, third, first, second):
            assert uids_in(web.ask(path_to(datasets[0]))) == all_uids(datasets)
        assert peer.gets == ["SERIES"] * 4, "the second was the one that had to go"


def test_switched_off(tmp_path: Path, peer: CountingArchive, series: list[Dataset]) -> None:
    """Each request asks the PACS, and nothing is kept."""
    with dicomweb_over(tmp_path, peer.backend, {"cache": {"enabled": False}}) as web:
        for _ in range(2):
            assert uids_in(web.ask(path_to(series[0]))) == all_uids(series)
            assert web.ask(f"{path_to(series[0], below='instance')}/frames/1").headers["ETag"] is None
        assert peer.gets == ["SERIES", "IMAGE"] * 2
        assert not cache_folder(web).exists()


def test_without_room_nothing_is_kept(tmp_path: Path, peer: CountingArchive, series: list[Dataset]) -> None:
    """Requests are answered all the same, and the log says it once."""
    with dicomweb_over(tmp_path, peer.backend, {"cache": {"min_free_mb": 10**9}}) as web:
        for _ in range(2):
            assert uids_in(web.ask(path_to(series[0]))) == all_uids(series)
        assert peer.gets == ["SERIES", "SERIES"]
        assert web.daemon.log.count("the cache keeps nothing for now") == 1


# --- restarts


def test_after_kill_9_what_was_whole_is_there(tmp_path: Path, peer: CountingArchive, series: list[Dataset]) -> None:
    """What was complete is given out again; what is damaged, or was under way, is removed and asked for again."""
    half = series_of(3)
    damaged = series_of(2)
    peer.datasets = series + damaged + half
    with dicomweb_over(tmp_path, peer.backend) as web:
        web.ask(path_to(series[0]))
        web.ask(path_to(damaged[0]))
        wait_until(lambda: len(kept(web)) == 2, "both are described")
        peer.hold()
        reader = Reading(web, path_to(half[0]))
        assert reader.began.wait(30)
        web.daemon.kill9()
        reader.leave()
        peer.release()
        [file] = cache_folder(web).glob(f"*/*{damaged[1].SOPInstanceUID}")
        file.write_bytes(file.read_bytes()[:-1])
        web.daemon.start()
        assert len(kept(web)) == 1
        assert len(list(cache_folder(web).glob("dcmtk_get_*"))) == len(["folder", "record", "kept"])
        peer.gets.clear()
        for datasets in (series, damaged, half):
            assert uids_in(web.ask(path_to(datasets[0]))) == all_uids(datasets)
        assert peer.gets == ["SERIES", "SERIES"]


# --- people


def figures(web: Gateway) -> Any:
    return web.daemon.http("GET", "/admin/cache").json()


def test_it_is_emptied_by_a_command(web: Gateway, peer: CountingArchive, series: list[Dataset]) -> None:
    """Of a daemon that runs; a client that reads just now gets the rest."""
    assert uids_in(web.ask(path_to(series[0]))) == all_uids(series)
    assert figures(web)["instances"] >= len(series)
    shown = command(web, "show")
    assert (shown["enabled"], shown["bytes"]) == (True, figures(web)["bytes"])
    assert command(web, "clear")["bytes"] == shown["bytes"]
    assert figures(web) == {**figures(web), "entries": 0, "instances": 0, "bytes": 0}
    assert not list(cache_folder(web).glob("dcmtk_*"))
    assert uids_in(web.ask(path_to(series[0]))) == all_uids(series)
    assert peer.gets == ["SERIES", "SERIES"]
    assert web.daemon.http("DELETE", "/admin/cache").json()["removed"]["instances"] == len(series)
    assert web.daemon.http("POST", "/admin/cache").status == 405


def test_it_is_emptied_without_a_daemon(tmp_path: Path, peer: CountingArchive, series: list[Dataset]) -> None:
    """The command works on the folder, then."""
    with dicomweb_over(tmp_path, peer.backend) as web:
        web.ask(path_to(series[0]))
        wait_until(lambda: len(kept(web)) == 1, "it is described")
        web.daemon.stop()
        assert command(web, "show")["bytes"] > 0
        assert command(web, "clear")["bytes"] > 0
        assert not list(cache_folder(web).glob("dcmtk_*"))
        assert command(web, "show")["bytes"] == 0


def command(web: Gateway, name: str) -> Any:
    argv = [*COMMAND, "cache", name, "--json", "--config", str(web.daemon.config)]
    return json.loads(subprocess.run(argv, check=True, capture_output=True, timeout=60).stdout)


# --- what clients may keep


def test_metadata_has_a_tag(web: Gateway, series: list[Dataset]) -> None:
    """Who has it is told so, in gzip and without; another Host has other URLs, and so another tag."""
    path = f"{path_to(series[0])}/metadata"
    streamed = web.ask(path)
    assert (streamed.headers["ETag"], streamed.headers["Cache-Control"]) == (None, "no-store")
    plain, packed = web.ask(path), web.ask(path, Accept_Encoding="gzip")
    assert json.loads(plain.body) == json.loads(streamed.body)
    assert len(packed.body) < len(plain.body)
    assert plain.headers["ETag"] != packed.headers["ETag"]
    for reply, encoding in ((plain, "identity"), (packed, "gzip")):
        assert reply.headers["Cache-Control"] == "private, no-cache"
        again = web.ask(path, If_None_Match=f'"other", W/{reply.headers["ETag"]}', Accept_Encoding=encoding)
        assert (again.status, again.body, again.headers["ETag"]) == (304, b"", reply.headers["ETag"])
    assert web.ask(path, If_None_Match='"other"').status == 200
    one = web.ask(f"{path_to(series[0], below='instance')}/metadata")
    assert web.ask(f"{path_to(series[0], below='instance')}/metadata", If_None_Match=one.headers["ETag"]).status == 304


def test_parts_of_what_is_packed(web: Gateway, series: list[Dataset]) -> None:
    """A range is one of the form that is sent: with the tag of the other form all of it is sent."""
    path = f"{path_to(series[0])}/metadata"
    web.ask(path_to(series[0]))
    plain, packed = web.ask(path), web.ask(path, Accept_Encoding="gzip")
    assert gzip.decompress(packed.body) == plain.body
    for whole, other, encoding in ((plain, packed, "identity"), (packed, plain, "gzip")):
        asked = {"Accept_Encoding": encoding, "Range": "bytes=10-99"}
        part = web.ask(path, **asked, If_Range=whole.headers["ETag"])
        assert (part.status, part.body) == (206, whole.body[10:100])
        for name in ("ETag", "Content-Encoding", "Vary"):
            assert part.headers[name] == whole.headers[name], name
        assert part.headers["Content-Range"] == f"bytes 10-99/{len(whole.body)}"
        again = web.ask(path, **asked, If_Range=other.headers["ETag"])
        assert (again.status, again.body) == (200, whole.body)


@pytest.mark.parametrize("what", ["frames/1", "bulkdata/7FE00010", "rendered", ""])
def test_parts_of_what_is_in_one_piece(web: Gateway, series: list[Dataset], what: str) -> None:
    """A range of a frame, of bulk data, a picture and an instance; 416 for what is not there; 304 for who has it."""
    accept = {"rendered": "image/png", "": "application/dicom"}.get(what, "application/octet-stream")
    path = f"{path_to(series[0], below='instance')}/{what}".rstrip("/")
    whole = web.ask(path, accept)
    total = len(whole.body)
    assert (whole.headers["Accept-Ranges"], whole.headers["Content-Length"]) == ("bytes", str(total))
    for given, start, end in (("bytes=10-19", 10, 20), ("bytes=20-", 20, total), ("bytes=-7", total - 7, total)):
        part = web.ask(path, accept, Range=given)
        assert (part.status, part.body) == (206, whole.body[start:end])
        assert part.headers["Content-Range"] == f"bytes {start}-{end - 1}/{total}"
    beyond = web.ask(path, accept, Range=f"bytes={total}-")
    assert (beyond.status, beyond.headers["Content-Range"]) == (416, f"bytes */{total}")
    tag = whole.headers["ETag"]
    assert web.ask(path, accept, Range="bytes=0-1", If_Range=tag).status == 206
    assert web.ask(path, accept, Range="bytes=0-1", If_Range='"other"').body == whole.body
    assert web.ask(path, accept, If_None_Match=tag).status == 304
