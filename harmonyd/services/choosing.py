"""Which backend a client asks for: by the first segment of the path, by a header field, or by ``?backend=``."""

from __future__ import annotations

from dataclasses import replace

from harmonyd.config.model import DicomwebEndpointOptions, HttpEndpointOptions
from harmonyd.errors import BadRequest, NotFound
from harmonyd.services.base import HttpRequest


def choose_backend(request: HttpRequest, options: HttpEndpointOptions) -> HttpRequest:
    """Return ``request`` with ``?backend=`` for whatever names one; a segment that does belongs to its prefix then.

    Whether the client may choose it is decided by the pipeline. Raises ``BadRequest`` for two that differ,
    ``NotFound`` for a path that names none where it has to.
    """
    named = list(request.query.get("backend", []))
    first, _, rest = request.path.removeprefix("/").partition("/")
    if first in options.path_backends:
        named.append(first)
        request = replace(request, prefix=f"{request.prefix}/{first}", path=f"/{rest}")
    elif rest and options.path_backends and not isinstance(options, DicomwebEndpointOptions):
        # A misspelled name must not become a request to another one. (DICOMweb has resources with longer paths.)
        raise NotFound("No such backend, or no such operation.", hint="The path is {backend}/{operation}.")
    if options.backend_header:
        value = request.headers.get(options.backend_header.lower(), "").strip()
        named += [value] if value else []
    if len(set(named)) > 1:
        raise BadRequest("The request names more than one backend.", hint="Name one: in the path, header or query.")
    return replace(request, query={**request.query, "backend": named[:1]}) if named else request
