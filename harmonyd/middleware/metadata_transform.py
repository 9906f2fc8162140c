"""``metadata_transform``: sets metadata, or the request that goes to the backend, as a JOLT specification says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harmonyd.envelope import RequestEnvelope, ResponseEnvelope
from harmonyd.jolt import TransformFailed
from harmonyd.middleware.specification import Specification, details_of


class MetadataTransform:
    """Options: those of ``Specification``, and ``transform_target``.

    ``metadata``: the specification sees the metadata, a flat object of strings. Strings in its result are set,
    directly in it or in its member ``metadata``; nothing is removed, and what is no string is ignored.

    ``target_details``: it sees ``method``, ``uri``, ``path``, ``query_params``, ``headers`` and ``metadata`` of the
    request. Of its result, ``method``, ``path`` and ``query_params`` replace what there was; fields of ``headers`` and
    ``metadata`` are set.
    """

    def __init__(self, name: str, options: Mapping[str, Any]) -> None:
        self.name = name
        self._specification = Specification(name, options)
        self._details = options["transform_target"] == "target_details"

    async def on_request(self, request: RequestEnvelope) -> ResponseEnvelope | None:
        """Raises ``TransformFailed``."""
        if self._specification.on_left:
            try:
                if self._details:
                    _set_details(request, await self._specification.apply(details_of(request), request))
                else:
                    result = await self._specification.apply(dict(request.metadata), request)
                    request.metadata.update(_strings(result))
            except TransformFailed as error:
                self._specification.failed(error, request)
        return None

    async def on_response(self, request: RequestEnvelope, response: ResponseEnvelope) -> ResponseEnvelope:
        """The same with the metadata of the response. Raises ``TransformFailed``."""
        if self._specification.on_right:
            try:
                result = await self._specification.apply(dict(response.metadata), request, response)
                response.metadata.update(_strings(result))
            except TransformFailed as error:
                self._specification.failed(error, request)
        return response


def _strings(result: Any) -> dict[str, str]:
    """The strings of a result, those of its member ``metadata`` among them."""
    if result is None:
        return {}  # a shift that found nothing
    if not isinstance(result, dict):
        raise TransformFailed("The result is not an object, as metadata is.")
    below = result.get("metadata")
    found = {**result, **(below if isinstance(below, dict) else {})}
    return {key: value for key, value in found.items() if isinstance(value, str)}


def _set_details(request: RequestEnvelope, result: Any) -> None:
    """Take over what the specification made of the request; all of it, or nothing where something is not right."""
    if result is None:
        return
    if not isinstance(result, dict):
        raise TransformFailed("The result is not an object, as target_details is.")
    method, path = _text(result, "method", request.method), _text(result, "path", request.path)
    query = _query(result["query_params"]) if "query_params" in result else request.query
    headers = {name.lower(): _text(_table(result, "headers"), name, "") for name in _table(result, "headers")}
    metadata = {key: value for key, value in _table(result, "metadata").items() if isinstance(value, str)}
    request.method, request.query = method, query
    request.headers = {**request.headers, **headers}
    request.metadata.update(metadata)
    if path != request.path:
        request.path = request.metadata["path"] = path


def _table(result: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = result.get(key, {})
    if not isinstance(value, dict):
        raise TransformFailed(f"{key} of the result is not an object.")
    return value


def _text(result: Mapping[str, Any], key: str, default: str) -> str:
    value = result.get(key, default)
    if not isinstance(value, str) or not value.isprintable():
        raise TransformFailed(f"{key} of the result is not a text, or has control characters.")
    return value


def _query(value: Any) -> dict[str, list[str]]:
    if not isinstance(value, dict):
        raise TransformFailed("query_params of the result is not an object.")
    listed = {name: values if isinstance(values, list) else [values] for name, values in value.items()}
    if not all(isinstance(text, str) for values in listed.values() for text in values):
        raise TransformFailed("A value in query_params of the result is not a text.")
    return listed
