"""A real viewer for tests: OHIF from npm, served on loopback, in Debian's Chromium without a screen."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, Self, TypeVar, cast

import numpy as np
from PIL import Image
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from harmonyd.testing.processes import wait_until

ResultT = TypeVar("ResultT")

ROOT = Path(__file__).parent.parent.parent
OHIF = ROOT / ".viewer"
DOCUMENTED_URL = "http://127.0.0.1:8080/dicomweb"
_PAINTED_WITHOUT_GPU = ("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")
_OPTIONS = (
    "--headless=new",
    "--no-sandbox",  # Chromium refuses to run as root with one
    "--window-size=1280,900",
    "--no-first-run",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    *_PAINTED_WITHOUT_GPU,
)
_AS_NEW = """\
window.config.investigationalUseDialog = { option: 'never' };
sessionStorage.clear();
localStorage.setItem('shownTours', JSON.stringify(['basicViewerTour']));
"""
"""The viewer remembers filters of its list, and shows to new users what lies over everything else."""


def documented_config(url: str) -> str:
    """The app-config.js of docs/dicomweb.md for the endpoint at ``url``, with nothing over the picture."""
    text = (ROOT / "docs" / "dicomweb.md").read_text()
    found = re.search(r"^```js\n(window\.config = .*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert found is not None and DOCUMENTED_URL in found[1], "docs/dicomweb.md has a configuration of OHIF"
    return found[1].replace(DOCUMENTED_URL, url) + _AS_NEW


class ViewerSite(ThreadingHTTPServer):
    """OHIF's files on a port of its own, so that the DICOMweb endpoint is another origin. ``config``: app-config.js."""

    daemon_threads = True

    def __init__(self) -> None:
        if not (OHIF / "index.html").is_file():
            raise RuntimeError("there is no OHIF viewer: 'make viewer' installs it")
        super().__init__(("127.0.0.1", 0), partial(_Files, directory=str(OHIF)))
        self.config = ""
        self.url = f"http://127.0.0.1:{self.server_port}"
        self._thread = Thread(target=self.serve_forever)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()


class _Files(SimpleHTTPRequestHandler):
    """Files; the routes of the application are its index.html."""

    server: ViewerSite

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/app-config.js":
            self._send_config(self.server.config.encode())
            return
        if not Path(path).suffix:
            self.path = "/index.html"
        super().do_GET()

    def _send_config(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/javascript")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


class Browser:
    """A Chromium. Nothing outside of this machine can be reached from it."""

    def __init__(self, folder: Path) -> None:
        chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
        if chromium is None or driver is None:
            raise RuntimeError("there is no Chromium with its driver: 'make viewer' installs them")
        options = webdriver.ChromeOptions()
        options.binary_location = chromium
        for option in (*_OPTIONS, f"--user-data-dir={folder / 'profile'}"):
            options.add_argument(option)
        options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
        self.failures: list[str] = []
        """A sentence for each request that failed and each error of a script, since the page was opened."""
        self._folder = folder
        self._urls: dict[str, str] = {}

    def open(self, url: str) -> None:
        """Load a page, and forget the failures of the one before."""
        self.driver.get("about:blank")
        self.look_for_failures()
        self.failures.clear()
        self.driver.get(url)

    def text(self) -> str:
        """All that the page shows in words."""
        return str(self.driver.execute_script("return document.body.innerText"))

    def find(self, selector: str, text: str = "") -> list[WebElement]:
        """The elements that a CSS selector names, and that have ``text`` in them."""
        return [each for each in self.driver.find_elements(By.CSS_SELECTOR, selector) if text in each.text]

    def click(self, selector: str, text: str) -> None:
        """Click at the element, once it is there."""
        self.wait(lambda: self.find(selector, text), f"{selector} with {text!r} is there")[0].click()

    def press(self, key: str) -> None:
        """Press a key, wherever the focus is."""
        ActionChains(self.driver).send_keys(key).perform()

    def picture(self, selector: str) -> np.ndarray | None:
        """What is seen of the first element: rows × columns × RGB. None while there is none."""
        elements = self.find(selector)
        return _pixels(elements[0].screenshot_as_png) if elements else None

    def wait(self, condition: Callable[[], ResultT], what: str, timeout_secs: float = 60.0) -> ResultT:
        """Wait for what is true of the page, which may change under the eyes of ``condition``.

        ``TimeoutError`` says what did not come, what the page says, and where a picture of it is.
        """

        def settled() -> ResultT | bool:
            try:
                return condition()
            except StaleElementReferenceException:
                return False

        try:
            return cast("ResultT", wait_until(settled, what, timeout_secs))
        except TimeoutError as error:
            seen = self._folder / "seen.png"
            self.driver.save_screenshot(str(seen))
            self.look_for_failures()
            raise TimeoutError(f"{error}; see {seen}\n{self.text()}\n{self.failures}") from error

    def look_for_failures(self) -> list[str]:
        """Bring ``failures`` up to date and return them."""
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            self._note(message["method"], message["params"])
        self.failures += [each["message"] for each in self.driver.get_log("browser") if each["level"] == "SEVERE"]
        return self.failures

    def _note(self, method: str, params: dict[str, Any]) -> None:
        request = params.get("requestId", "")
        if method == "Network.requestWillBeSent":
            self._urls[request] = params["request"]["url"]
        elif method == "Network.responseReceived" and params["response"]["status"] >= 400:
            self.failures.append(f"{params['response']['status']} {params['response']['url']}")
        elif method == "Network.loadingFailed" and request in self._urls and not params.get("canceled"):
            self.failures.append(f"{params['errorText']} {self._urls[request]}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.driver.quit()


def _pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
