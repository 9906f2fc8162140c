"""Content negotiation (RFC 9110 section 12.5.1): which media type an operation answers with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from harmonyd.errors import NotAcceptable
from harmonyd.mediatypes import MediaType, parse_media_type, split_list

JSON = "application/json"
DICOM_JSON = "application/dicom+json"
NDJSON = "application/x-ndjson"
DICOM = "application/dicom"
MULTIPART_DICOM = 'multipart/related; type="application/dicom"'
ZIP = "application/zip"

OFFERS: Mapping[str, tuple[str, ...]] = {
    "echo": (JSON,),
    "find": (JSON, DICOM_JSON, NDJSON),
    "get": (JSON, MULTIPART_DICOM, ZIP, DICOM),
    "move": (JSON, MULTIPART_DICOM, ZIP, DICOM),
    "store": (JSON,),
    "worklist": (JSON, DICOM_JSON, NDJSON),
    "commit": (JSON,),
}
"""Media types per operation; the first is the default."""


@dataclass(frozen=True, slots=True)
class _Range:
    """One media range of an Accept header with its weight."""

    media: MediaType
    quality: float

    def specificity(self) -> int:
        """How much the range says: a whole type beats ``type/*`` beats ``*/*``, parameters beat none."""
        wildcards = (self.media.type == "*") + (self.media.subtype == "*")
        return 10 * (2 - wildcards) + len(self.media.parameters)

    def matches(self, offer: MediaType) -> bool:
        """Tell whether the range covers ``offer``, its parameters included."""
        return (
            self.media.type in ("*", offer.type)
            and self.media.subtype in ("*", offer.subtype)
            and all(_parameter_matches(name, value, offer) for name, value in self.media.parameters.items())
        )


def negotiate(operation: str, accept: str | None) -> str:
    """Return the media type, as in ``OFFERS``, that an operation answers with.

    ``accept`` is the Accept header; None, an empty one, and one without any media range in it mean the default. Of
    equal weights the range that says more wins, then the order of the offers. Raises ``NotAcceptable`` with the offers.
    """
    offers = OFFERS[operation]
    ranges = _ranges(accept or "")
    if not ranges:
        return offers[0]
    ranked = [(rank, -index, offer) for index, offer in enumerate(offers) if (rank := _rank(offer, ranges))[0] > 0]
    if not ranked:
        raise NotAcceptable(
            f"The answer of {operation} is not available as what the client accepts.",
            hint=f"Accept one of: {', '.join(offers)}",
            operation=operation,
            offered=list(offers),
        )
    return max(ranked)[2]


def _rank(offer: str, ranges: list[_Range]) -> tuple[float, int]:
    """Weight and specificity of the most specific range that covers an offer; (0, 0) for none."""
    media = parse_media_type(offer)
    assert media is not None
    matching = [(each.specificity(), each.quality) for each in ranges if each.matches(media)]
    specificity, quality = max(matching, default=(0, 0.0))
    return quality, specificity


def _ranges(accept: str) -> list[_Range]:
    found = (parse_media_type(element) for element in split_list(accept))
    return [_weighed(media) for media in found if media is not None]


def _weighed(media: MediaType) -> _Range:
    parameters = {name: value for name, value in media.parameters.items() if name != "q"}
    return _Range(MediaType(media.type, media.subtype, parameters), _quality(media.parameters.get("q", "1")))


def _quality(text: str) -> float:
    """A weight between 0 and 1; one that is not a number counts as 1, as if it had not been given."""
    try:
        value = float(text)
    except ValueError:
        return 1.0
    return min(max(value, 0.0), 1.0) if value == value else 1.0


def _parameter_matches(name: str, value: str, offer: MediaType) -> bool:
    """Compare what would change the answer; parameters that mean nothing to us do not stand in the way."""
    match name:
        case "type":
            wanted = offer.parameters.get("type")
            return wanted is None or value.lower() in ("*/*", wanted)
        case "transfer-syntax":
            # PS3.18 section 8.7.3.5: "*" is "as it is stored"; we pass instances on as they came and convert none.
            return value == "*" or "dicom" not in (offer.subtype, offer.parameters.get("type", "").partition("/")[2])
        case "charset":
            return value.lower() in ("utf-8", "utf8", "*")
    return True
