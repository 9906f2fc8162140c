"""Header fields that belong to one connection and must not be passed on (RFC 9110 section 7.6.1)."""

from __future__ import annotations

from collections.abc import Mapping

_CONNECTION_FIELDS = frozenset(
    {
        "connection",
        "content-length",  # the length is told apart from the headers, by whoever frames the body
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)


def end_to_end(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the fields that may be passed on, names in lower case: none of the connection's, none that it lists."""
    lowered = {name.lower(): value for name, value in headers.items()}
    listed = {name.strip().lower() for name in lowered.get("connection", "").split(",")}
    return {name: value for name, value in lowered.items() if name not in _CONNECTION_FIELDS | listed}
