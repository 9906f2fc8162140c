"""What can be wrong with something that is to be rewritten."""

from __future__ import annotations

from harmonyd.errors import BadRequest, HarmonydError


class CannotRewrite(HarmonydError):
    """It is not passed on, because it cannot be rewritten as the configuration says."""

    title = "It cannot be rewritten"


class BadObject(BadRequest):
    """An object cannot be rewritten as the configuration says, and so is not passed on."""

    title = "The object cannot be rewritten"


class NotAskable(BadRequest):
    """A query has a value for an attribute that middleware removes, so that it cannot be matched."""

    title = "This attribute cannot be asked for"


class NothingMatches(Exception):
    """A query asks for a value that does not exist in the other view, so nothing can match."""


class Compressed(BadObject):
    """Regions of pixels are to be blanked, and the pixels have to be decoded before that."""
