"""``metadata``: sets the operation, the backend, identifier keys, or any other metadata of a request."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from harmonyd.envelope import RequestEnvelope, ResponseEnvelope
from harmonyd.middleware.passthru import Passthru


class Metadata(Passthru):
    """Writes fixed entries into ``request.metadata``; they win over whatever was there.

    Options: ``set`` (a table of metadata keys), ``dimse_op`` and ``backend`` (short for the keys of the same names),
    and ``identifier`` (a table of DICOM keywords, which become ``identifier.KEYWORD``).
    """

    def __init__(self, name: str, options: Mapping[str, Any]) -> None:
        super().__init__(name)
        self.entries = dict(_entries(options))

    async def on_request(self, request: RequestEnvelope) -> ResponseEnvelope | None:
        """Set the entries."""
        request.metadata.update(self.entries)
        return None


def _entries(options: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key, value in options.get("set", {}).items():
        yield key, _text(value)
    for key in ("dimse_op", "backend"):
        if options.get(key) is not None:
            yield key, _text(options[key])
    for keyword, value in options.get("identifier", {}).items():
        yield f"identifier.{keyword}", _text(value)


def _text(value: Any) -> str:
    """A TOML value as metadata text: ``true`` as "true", so that ``skip_backends = true`` means what it says."""
    return str(value).lower() if isinstance(value, bool) else str(value)
