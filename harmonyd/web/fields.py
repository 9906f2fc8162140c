"""Header fields of an answer that come from more than one place."""

from __future__ import annotations

from collections.abc import Mapping

from harmonyd.mediatypes import split_list


def add_vary(headers: Mapping[str, str], *names: str) -> dict[str, str]:
    """Return ``headers`` with these names in ``Vary``, beside those that are there (RFC 9110 section 12.5.5)."""
    result = {name: value for name, value in headers.items() if name.lower() != "vary"}
    given = [value for name, value in headers.items() if name.lower() == "vary"]
    listed = [each for value in given for each in split_list(value)]
    known = {each.lower() for each in listed}
    listed += [name for name in names if name.lower() not in known]
    return result | {"Vary": ", ".join(listed)}


def merged(headers: Mapping[str, str], common: Mapping[str, str]) -> dict[str, str]:
    """Return ``headers`` with the common ones, which win; those in ``Vary`` are added."""
    replaced = {name.lower() for name in common if name != "Vary"}
    result = {name: value for name, value in headers.items() if name.lower() not in replaced}
    result |= {name: value for name, value in common.items() if name != "Vary"}
    return add_vary(result, *split_list(common["Vary"])) if "Vary" in common else result
