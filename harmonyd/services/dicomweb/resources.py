"""Which resource a path names (PS3.18 sections 8.2, 10.4.1, 10.5.1 and 10.6.1)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harmonyd.dimse.uid import is_lenient_uid
from harmonyd.errors import BadRequest, NotFound

_UID_NAMES = ("study", "series", "instance")
_MAX_FRAMES = 10_000
_BULK_TAG = re.compile(r"[0-9A-Fa-f]{8}")


@dataclass(frozen=True, slots=True)
class Resource:
    """What is asked for, and below which study, series and instance; empty: none."""

    kind: str
    """studies, series, instances (what can be searched), study, series-of, instance (what is retrieved) and so on."""
    study: str = ""
    series: str = ""
    instance: str = ""
    frames: tuple[int, ...] = ()
    """Frame numbers, the first is 1."""
    bulk: tuple[str, ...] = ()
    """Tag, and item number and tag for each sequence around it, the outermost first."""

    @property
    def uids(self) -> Mapping[str, str]:
        """The unique keys, by keyword."""
        named = {"StudyInstanceUID": self.study, "SeriesInstanceUID": self.series, "SOPInstanceUID": self.instance}
        return {keyword: uid for keyword, uid in named.items() if uid}

    @property
    def level(self) -> str:
        """The query level of what the UIDs name."""
        return "IMAGE" if self.instance else "SERIES" if self.series else "STUDY"

    @property
    def path(self) -> str:
        """The path of the study, series or instance."""
        return path_of(self.study, self.series, self.instance)


def path_of(study: str, series: str = "", instance: str = "") -> str:
    """Return the path of a study, series or instance after the prefix."""
    below = f"/series/{series}" if series else ""
    return f"/studies/{study}{below}" + (f"/instances/{instance}" if instance else "")


def parse_path(path: str) -> Resource:
    """Return what a path (after the prefix, percent-decoded) names.

    Raises ``NotFound`` for a path that is no resource, ``BadRequest`` for a UID or frame list that is none.
    """
    segments = [segment for segment in path.strip("/").split("/") if segment or path.strip("/")]
    uids, rest = _uids(segments)
    found = _searched(uids, rest) or _retrieved(uids, rest)
    if found is None:
        raise NotFound(
            "There is no such DICOMweb resource.", hint="PS3.18 has, for one, /studies and /studies/{UID}/series."
        )
    return found


def _uids(segments: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Split off ``studies/UID/series/UID/instances/UID``, as far as it goes."""
    uids: dict[str, str] = {}
    rest = list(segments)
    for name, word in zip(_UID_NAMES, ("studies", "series", "instances"), strict=True):
        if len(rest) < 2 or rest[0] != word:
            break
        if not is_lenient_uid(rest[1]):
            raise BadRequest("The path has no UID where one belongs.", hint="A UID has digits and dots, 64 at most.")
        uids[name] = rest[1]
        rest = rest[2:]
    return uids, rest


def _places(uids: Mapping[str, str]) -> tuple[str, str, str]:
    return uids.get("study", ""), uids.get("series", ""), uids.get("instance", "")


def _searched(uids: Mapping[str, str], rest: Sequence[str]) -> Resource | None:
    if len(rest) != 1 or "instance" in uids:
        return None
    known = {(): ("studies", "series", "instances"), ("study",): ("series", "instances")}.get(
        tuple(uids), ("instances",)
    )
    return Resource(rest[0], *_places(uids)) if rest[0] in known else None


def _retrieved(uids: Mapping[str, str], rest: Sequence[str]) -> Resource | None:
    if "study" not in uids:
        return None
    whole = "instance" if "instance" in uids else "series-of" if "series" in uids else "study"
    if not rest:
        return Resource(whole, *_places(uids))
    if len(rest) == 1 and rest[0] in ("metadata", "rendered", "thumbnail"):
        return Resource(rest[0], *_places(uids))
    if "instance" not in uids:
        return None
    if rest[0] == "bulkdata" and len(rest) > 1:
        return Resource("bulkdata", *_places(uids), bulk=_bulk(rest[1:]))
    if rest[0] == "frames" and len(rest) > 1:
        kind = {(): "frames", ("rendered",): "rendered", ("thumbnail",): "thumbnail"}.get(tuple(rest[2:]))
        return None if kind is None else Resource(kind, *_places(uids), frames=_frames(rest[1]))
    return None


def _frames(text: str) -> tuple[int, ...]:
    numbers = text.split(",")
    if len(numbers) > _MAX_FRAMES or not all(number.isascii() and number.isdigit() for number in numbers):
        raise BadRequest("The path has no frame numbers where they belong.", hint="Write for example 1 or 1,2,3.")
    frames = tuple(int(number[:10]) for number in numbers)
    if min(frames) < 1:
        raise BadRequest("Frames are numbered from 1 (PS3.18 section 10.4.1.3).")
    return frames


def _bulk(parts: Sequence[str]) -> tuple[str, ...]:
    tags, items = parts[::2], parts[1::2]
    sound = all(map(_BULK_TAG.fullmatch, tags)) and all(
        item.isascii() and item.isdigit() and len(item) < 9 for item in items
    )
    if len(tags) != len(items) + 1 or not sound:
        raise NotFound("There is no such bulk data.", hint="Take the BulkDataURI from the instance's metadata.")
    return tuple(parts)
