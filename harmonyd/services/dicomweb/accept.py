"""What a client accepts, as DICOMweb's clients say it (PS3.18 sections 8.3.3.1, 8.7.5 and 8.7.8)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from harmonyd.errors import NotAcceptable
from harmonyd.mediatypes import MediaType, parse_media_type, split_list
from harmonyd.services.base import HttpRequest

DICOM = "application/dicom"
DICOM_JSON = "application/dicom+json"
DICOM_XML = "application/dicom+xml"
JSON = "application/json"
OCTETS = "application/octet-stream"
ZIP = "application/zip"
ANY = "*/*"
_SPACE = re.compile(r"(?<=[a-z0-9]) (?=(?:json|xml)\b)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Offer:
    """A media type that can be answered; ``multipart``: as parts of multipart/related."""

    essence: str
    multipart: bool = False

    def __str__(self) -> str:
        return f'multipart/related; type="{self.essence}"' if self.multipart else self.essence


@dataclass(frozen=True, slots=True)
class Accepted:
    """One element of Accept; ``essence`` is that of the parts where it is multipart."""

    essence: str
    multipart: bool
    syntax: str | None
    """The transfer-syntax parameter: a UID, "*", or None."""
    quality: float = 1.0

    def covers(self, offer: Offer) -> bool:
        """Tell whether ``offer`` is accepted. A plain ``*/*`` takes either form."""
        if self.essence == ANY:
            return offer.multipart or not self.multipart
        return self.multipart == offer.multipart and _matches(self.essence, offer.essence)


def _matches(pattern: str, essence: str) -> bool:
    return pattern in (ANY, essence) or (pattern.endswith("/*") and essence.startswith(pattern[:-1]))


def accepted(request: HttpRequest) -> list[Accepted]:
    """Return what the client accepts, what it likes best first; empty: it does not say.

    The query parameter ``accept`` stands in for the header (PS3.18 section 8.3.3.1). In it, what is no media type is
    refused with ``NotAcceptable``: nobody sends that by habit, as some do with headers.
    """
    # In a query a plus sign stands for a space: application/dicom+json was meant.
    given = _SPACE.sub("+", ",".join(request.query.get("accept", [])))
    medias = [parse_media_type(element) for element in split_list(given or request.headers.get("accept", ""))]
    if given and None in medias:
        hint = "Write for example accept=application/dicom%2Bjson."
        raise NotAcceptable("accept has something that is no media type.", hint=hint)
    found = [each for media in medias if media is not None and (each := _accepted(media)).quality > 0]
    return sorted(found, key=lambda each: (-each.quality, each.essence == ANY))


def _accepted(media: MediaType) -> Accepted:
    multipart = media.essence == "multipart/related"
    essence = media.parameters.get("type", ANY).lower() if multipart else media.essence
    try:
        quality = min(max(float(media.parameters.get("q", "1")), 0.0), 1.0)
    except ValueError:
        quality = 1.0
    return Accepted(essence, multipart, media.parameters.get("transfer-syntax"), quality)


def choose(ranges: Sequence[Accepted], offers: Sequence[Offer]) -> Offer:
    """Return the offer that the client likes best; the first one where it does not say. Raises ``NotAcceptable``."""
    if not ranges:
        return offers[0]
    for each in ranges:
        for offer in offers:
            if each.covers(offer):
                return offer
    raise not_acceptable(offers)


def not_acceptable(offers: Sequence[Offer]) -> NotAcceptable:
    """Return the error for a client that accepts none of ``offers``."""
    names = list(map(str, offers))
    return NotAcceptable(
        "This resource is not available as what the client accepts.",
        hint=f"Accept one of: {', '.join(names)}",
        offered=names,
    )


def syntaxes(ranges: Sequence[Accepted], offer: Offer) -> tuple[str, ...]:
    """Return the transfer syntaxes accepted for an offer, in order; "*" is as stored, and so is none at all."""
    named = [each.syntax or "*" for each in ranges if each.covers(offer)]
    return tuple(dict.fromkeys(named)) or ("*",)
