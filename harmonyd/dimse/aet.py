"""Application Entity titles (PS3.5 section 6.2, VR AE)."""

from __future__ import annotations

MAX_LENGTH = 16


def check_aet(text: str) -> str:
    """Return ``text`` without its insignificant leading and trailing spaces; raise ValueError with the reason.

    An AE title is 1 to 16 characters of printable ASCII without backslash. A leading ``@`` is refused as well: DCMTK's
    command line replaces such an argument by the contents of a file.
    """
    title = text.strip(" ")
    if not title:
        raise ValueError("an AE title must not be empty or only spaces")
    if len(title) > MAX_LENGTH:
        raise ValueError(f"an AE title has at most {MAX_LENGTH} characters, this one has {len(title)}")
    if not (title.isascii() and title.isprintable()):
        raise ValueError("an AE title holds only printable ASCII characters")
    if "\\" in title:
        raise ValueError("an AE title must not contain a backslash")
    if title.startswith("@"):
        raise ValueError("an AE title must not start with @")
    return title
