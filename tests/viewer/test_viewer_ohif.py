"""The OHIF viewer over a DICOMweb endpoint: what a radiologist would see is looked at, pixel by pixel."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from archive_peer import ArchivePeer
from dicomweb_kit import Gateway, dicomweb_over, pacs_options
from pictures_kit import SYNTAXES, differing, make_colours, make_ct, make_pdf
from pydicom import dcmread
from pydicom.uid import ExplicitVRLittleEndian
from selenium.webdriver.common.keys import Keys
from viewer_kit import Browser, ViewerSite, documented_config

from harmonyd.testing.data import uid_for
from harmonyd.testing.pacs import RunningPacs
from harmonyd.testing.processes import free_port

pytestmark = pytest.mark.deadline(240)

IMAGES = 5
FRAMES = 4
UPLOADED = 3
CANVAS = "canvas.cornerstone-canvas"
SHARP, SMALL = 40, 150
"""How many pixels may differ: where one is shown as several, where several are shown as one."""
Files = dict[str, list[Path]]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """The objects of each patient."""
    folder = tmp_path_factory.mktemp("pictures")
    return {
        "PLAIN": make_ct(folder, "PLAIN", "Plain^Anna", [ExplicitVRLittleEndian] * IMAGES),
        "UMLAUT": make_ct(folder, "UMLAUT", "Müller^Jörg", [ExplicitVRLittleEndian] * 2),
        "PDF": make_pdf(folder, "PDF", "Paper^Pat"),
        "NEW": make_ct(folder, "NEW", "New^Una", [ExplicitVRLittleEndian] * UPLOADED),
        "MIXED": make_ct(folder, "MIXED", "Mixed^Max", SYNTAXES),
        "COLOURS": make_colours(folder, "COLOURS", "Colour^Ulla", FRAMES),
    }


@pytest.fixture(scope="module")
def site() -> Iterator[ViewerSite]:
    with ViewerSite() as running:
        yield running


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("browser")) as running:
        yield running


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory, files: Files) -> Iterator[RunningPacs]:
    loaded = [*files["PLAIN"], *files["UMLAUT"], *files["PDF"]]
    with RunningPacs(tmp_path_factory.mktemp("pacs"), files=loaded) as running:
        yield running


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory, pacs: RunningPacs, site: ViewerSite) -> Iterator[Gateway]:
    """A gateway over dcmqrscp."""
    backend = pacs_options(pacs, "native")
    with dicomweb_over(tmp_path_factory.mktemp("web"), backend, cors_origins=[site.url]) as running:
        yield running


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory, files: Files, site: ViewerSite) -> Iterator[Gateway]:
    """A gateway over a PACS that sends what is compressed, mixed as it is. dcmqrscp does not."""
    folder = tmp_path_factory.mktemp("archive")
    with (
        ArchivePeer(map(dcmread, [*files["MIXED"], *files["COLOURS"]])) as pacs,
        dicomweb_over(folder, pacs.backend, cors_origins=[site.url]) as running,
    ):
        yield running


def test_studies_are_listed_and_found(site: ViewerSite, browser: Browser, web: Gateway) -> None:
    """The list names patients, modalities and counts; a part of a name that is not ASCII finds the patient."""
    open_list(site, browser, web)
    browser.wait(lambda: {"Plain, Anna", "Müller, Jörg", "Paper, Pat"} <= listed(browser).keys(), "all are listed")
    assert listed(browser)["Plain, Anna"] == ["29-Feb-2024 10:15 AM", "CT", "Study of PLAIN", str(IMAGES)]
    browser.find("tbody input")[0].send_keys("Mül")
    browser.wait(lambda: list(listed(browser)) == ["Müller, Jörg"], "one is left")
    assert browser.look_for_failures() == []


def test_a_study_is_opened_and_paged_through(site: ViewerSite, browser: Browser, web: Gateway) -> None:
    """From the list to the picture: each image is the one it says it is, in its place, in the window it names."""
    open_list(site, browser, web)
    browser.click("tbody tr", "Plain, Anna")
    browser.click("button", "Basic Viewer")
    wait_shown(browser, "5 (1/5)", 5)
    wait_thumbnail(browser, IMAGES)
    for position, number in enumerate((4, 3, 2, 1), 2):
        browser.press(Keys.ARROW_DOWN)
        wait_shown(browser, f"{number} ({position}/5)", number)
    assert browser.look_for_failures() == []


def test_compressed_objects_of_one_series(site: ViewerSite, browser: Browser, archive: Gateway) -> None:
    """Each image of a series has another transfer syntax, and the viewer decodes them all."""
    open_study(site, browser, archive, "MIXED")
    count = len(SYNTAXES)
    wait_thumbnail(browser, count)
    for position in range(1, count + 1):
        number = count + 1 - position
        wait_shown(browser, f"{number} ({position}/{count})", number)
        browser.press(Keys.ARROW_DOWN)
    assert browser.look_for_failures() == []


def test_frames_in_colour(site: ViewerSite, browser: Browser, archive: Gateway) -> None:
    """The frames of one ultrasound object, JPEG in YCbCr, are asked for one by one, and have their colours."""
    open_study(site, browser, archive, "COLOURS")
    wait_thumbnail(browser, FRAMES, colours=True)
    for number in range(1, FRAMES + 1):
        wait_shown(browser, f"1 ({number}/{FRAMES})", number, colours=True)
        browser.press(Keys.ARROW_DOWN)
    assert browser.look_for_failures() == []


@pytest.mark.parametrize("singlepart", ["", "bulkdata,video,pdf"])
def test_a_document(site: ViewerSite, browser: Browser, web: Gateway, singlepart: str) -> None:
    """A PDF is taken as bulk data, or rendered, as many configurations have it; its red page is shown."""
    open_study(site, browser, web, "PDF", singlepart=singlepart)
    browser.wait(lambda: reds(browser, "[data-cy=viewport-pane]") > 10_000, "the page is shown")
    assert browser.look_for_failures() == []


def test_objects_are_uploaded(
    tmp_path: Path, site: ViewerSite, browser: Browser, pacs: RunningPacs, files: Files
) -> None:
    """What the viewer stores, each object for itself and at once, is in the PACS, and can be opened.

    dcmqrscp may give objects of several associations the same file, so it gets one association at a time.
    """
    backend = pacs_options(pacs, "native", max_associations=1)
    with dicomweb_over(tmp_path, backend, cors_origins=[site.url]) as web:
        open_list(site, browser, web)
        browser.click("button", "Upload")
        chooser = browser.wait(lambda: browser.find("input[type=file]"), "files can be chosen")[0]
        chooser.send_keys("\n".join(map(str, files["NEW"])))
        browser.wait(lambda: f"{UPLOADED} files completed" in browser.text(), "all are stored")
        assert browser.look_for_failures() == []
        open_study(site, browser, web, "NEW")
        wait_shown(browser, f"{UPLOADED} (1/{UPLOADED})", UPLOADED)
        assert browser.look_for_failures() == []


def test_a_pacs_that_is_away(tmp_path: Path, site: ViewerSite, browser: Browser) -> None:
    """The viewer gets to read the 502, though it is of another origin, and says that the source does not work."""
    backend = {"engine": "native", "aet": "AWAY", "host": "127.0.0.1", "port": free_port()}
    with dicomweb_over(tmp_path, backend, cors_origins=[site.url]) as web:
        open_list(site, browser, web)
        browser.wait(lambda: "Data Source Connection Error" in browser.text(), "the viewer says so")
    assert any(each.startswith("502 ") for each in browser.look_for_failures())
    assert not any("CORS" in each for each in browser.failures)


def open_list(site: ViewerSite, browser: Browser, web: Gateway) -> None:
    """Open the study list over a gateway."""
    site.config = documented_config(web.url)
    browser.open(site.url)


def open_study(site: ViewerSite, browser: Browser, web: Gateway, patient: str, **options: str) -> None:
    """Open a patient's study in the viewer, as a link in a hospital's portal would. ``options``: of the data source."""
    more = "Object.assign(window.config.dataSources[0].configuration, %s);\n"
    site.config = documented_config(web.url) + more % json.dumps(options)
    browser.open(f"{site.url}/viewer?StudyInstanceUIDs={uid_for(patient)}")


def listed(browser: Browser) -> dict[str, list[str]]:
    """What the study list shows of each patient."""
    rows = [re.split(r"[\t\n]+", row.text) for row in browser.find("tbody tr", ", ")]
    return {name: columns for name, *columns in rows}


def wait_shown(browser: Browser, label: str, number: int, *, colours: bool = False) -> None:
    """Wait until the viewport says that it shows ``label``, and what it shows is image ``number``."""

    def shown() -> bool:
        if not browser.find("[data-cy=viewport-overlay-bottom-right]", label):
            return False
        picture = browser.picture(CANVAS)
        return picture is not None and differing(picture, number, colours=colours) <= SHARP

    browser.wait(shown, f"image {label} is shown")


def wait_thumbnail(browser: Browser, count: int, *, colours: bool = False) -> None:
    """Wait until the small picture of the series is that of one of its ``count`` images: the viewer chooses."""

    def shown() -> bool:
        picture = browser.picture("[data-cy=study-browser-thumbnail] img")
        numbers = range(1, count + 1)
        return picture is not None and min(differing(picture, each, colours=colours) for each in numbers) <= SMALL

    browser.wait(shown, "there is a small picture of the series")


def reds(browser: Browser, selector: str) -> int:
    """How many pixels of an element are red."""
    picture = browser.picture(selector)
    return 0 if picture is None else int(((picture[..., 0] > 200) & (picture[..., 1:] < 60).all(-1)).sum())
