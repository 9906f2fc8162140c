"""The endpoint half of ``dicomweb``: resources of PS3.18 to questions for a dicom backend, and its answers back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from harmonyd.config.model import DicomwebEndpointOptions
from harmonyd.errors import HarmonydError, MethodNotAllowed
from harmonyd.services.base import Ask, HttpAnswer, HttpRequest
from harmonyd.services.choosing import choose_backend
from harmonyd.services.dicomweb import bulkdata, frames, instances, metadata, rendered, searching, storing
from harmonyd.services.dicomweb.asking import AnsweredElsewhere, Asker
from harmonyd.services.dicomweb.codec_pool import Codecs
from harmonyd.services.dicomweb.cors import cors_headers, preflight
from harmonyd.services.dicomweb.counted import Counted
from harmonyd.services.dicomweb.exchange import Exchange
from harmonyd.services.dicomweb.images import Images
from harmonyd.services.dicomweb.resources import Resource, parse_path
from harmonyd.services.dicomweb.urls import base_url
from harmonyd.services.http.answers import ClosingIterator
from harmonyd.services.http.headers import end_to_end

_Handler = Callable[[Exchange], Awaitable[HttpAnswer]]
_SEARCHES = ("studies", "series", "instances")
_GET: Mapping[str, _Handler] = {
    **dict.fromkeys(_SEARCHES, searching.answer),
    **dict.fromkeys(("study", "series-of", "instance"), instances.answer),
    "metadata": metadata.answer,
    "bulkdata": bulkdata.answer,
    "frames": frames.answer,
    "rendered": rendered.rendered,
    "thumbnail": rendered.thumbnail,
}
_RETRIEVES = ("study", "series-of", "instance", "metadata")
_POST: Mapping[str, _Handler] = dict.fromkeys(("studies", "study"), storing.answer)


class DicomwebEndpoint:
    """Serves QIDO-RS, WADO-RS and STOW-RS below ``path_prefix`` (PS3.18 section 10)."""

    methods: tuple[str, ...] = ()
    """Each resource has its own."""

    def __init__(
        self, name: str, options: DicomwebEndpointOptions, seconds: Callable[[], float], codecs: Codecs
    ) -> None:
        """``seconds`` is the reactor's clock."""
        self._codecs = codecs
        self.name = name
        self.path_prefix = options.path_prefix
        self.public_prefix = options.public_url + options.path_prefix
        self._options = options
        self._seconds = seconds
        self._images = Images()
        self._counted = Counted(seconds)

    def may_run_long(self, request: HttpRequest) -> bool:
        """Tell whether the request retrieves instances, or stores some."""
        return parse_path(request.path).kind in (_RETRIEVES if request.method == "GET" else _POST)

    def choose(self, request: HttpRequest) -> HttpRequest:
        """See ``choose_backend``."""
        return choose_backend(request, self._options)

    def common_headers(self, headers: Mapping[str, str]) -> dict[str, str]:
        """Return what lets pages of the configured origins read the answer."""
        return cors_headers(headers.get("origin"), self._options.cors_origins)

    async def serve(self, request: HttpRequest, ask: Ask) -> HttpAnswer:
        """Answer a request. Raises ``HarmonydError``."""
        if request.method == "OPTIONS":
            return preflight(request, _options(request.path), self._options.backend_header)
        resource = parse_path(request.path)
        handler = _handler(request.method, resource)
        asker = Asker(request, ask, self._seconds, self._options.search_timeout_secs)
        url = base_url(request, self._options.public_url)
        exchange = Exchange(request, resource, asker, self._options, url, self._counted, self._codecs, self._images)
        try:
            answer = await handler(exchange)
        except AnsweredElsewhere as answered:
            return _passed_on(answered)
        searching.add_warnings(answer, searching.failures(exchange), exchange)
        return answer


def _handler(method: str, resource: Resource) -> _Handler:
    tables = {"GET": _GET, "HEAD": _GET, "POST": _POST}
    found = tables.get(method, {}).get(resource.kind)
    if found is None:
        raise MethodNotAllowed(f"{method} is not possible on this resource.", allow=[*_methods(resource), "OPTIONS"])
    return found


def _options(path: str) -> list[str]:
    """What OPTIONS tells. A page may ask for what is not there, and is to learn that from the answer."""
    try:
        return _methods(parse_path(path))
    except HarmonydError:
        return ["GET", "HEAD", "POST"]


def _methods(resource: Resource) -> list[str]:
    return [*(("GET", "HEAD") if resource.kind in _GET else ()), *(("POST",) if resource.kind in _POST else ())]


def _passed_on(answered: AnsweredElsewhere) -> HttpAnswer:
    response = answered.response
    headers = end_to_end(response.headers)
    if response.body is None:
        return HttpAnswer(response.status, headers, length=0)
    return HttpAnswer(
        response.status, headers, ClosingIterator(response.body.chunks(), response.close), response.body.length
    )
