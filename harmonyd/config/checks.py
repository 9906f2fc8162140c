"""Rules for single values: each function returns a complaint for people, or None when the value is right."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit

SYSTEMD = "systemd:"
_LABEL = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)\Z")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}\Z")
_MEANT = frozenset(
    {"accept", "authorization", "connection", "content-length", "content-type", "cookie", "host", "origin", "prefer"}
)
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")
_RULE_SEGMENT = re.compile(r"\{[A-Za-z_][A-Za-z0-9_]*\}\Z")


def name(value: str) -> str | None:
    """Names of tables appear in child names and folder names, so no separator or leading dot may be in them."""
    if _NAME.match(value):
        return None
    return "not a usable name: 1 to 64 letters, digits, '_', '-' or '.', not starting with '-' or '.'"


def ae_title(value: str) -> str | None:
    """VR AE (PS3.5 section 6.2): up to 16 characters of the default repertoire, no backslash, not only spaces.

    A leading "@" is refused because DCMTK replaces such an argument by the content of the file of that name.
    """
    if not 1 <= len(value) <= 16:
        return f"an AE title has 1 to 16 characters, this has {len(value)}"
    if not value.isascii() or not value.isprintable():
        return "an AE title has printable ASCII characters only"
    if "\\" in value:
        return "an AE title has no backslash"
    if not value.strip():
        return "an AE title is not only spaces"
    if value.startswith("@"):
        return "an AE title that starts with '@' would be read as a file name by DCMTK"
    return None


def is_ip_address(value: str) -> bool:
    """True for an IPv4 or IPv6 literal, without brackets or zone."""
    try:
        ipaddress.ip_address(value)
    except ValueError:
        return False
    return "%" not in value


def is_loopback(value: str) -> bool:
    """True for an IP address that only this machine reaches."""
    return is_ip_address(value) and ipaddress.ip_address(value).is_loopback


def host(value: str) -> str | None:
    """A host name (RFC 1123 section 2.1, and underscores, which container networks use), IPv4 or IPv6 address."""
    if is_ip_address(value):
        return None
    labels = value.removesuffix(".").split(".")
    # A last label of digits only is a mistyped IPv4 address: no such top-level domain exists (RFC 3696 section 2).
    if len(value) > 253 or labels[-1].isdigit() or not all(_LABEL.match(label) for label in labels):
        return "not a host name, IPv4 or IPv6 address"
    return None


def ip_address(value: str) -> str | None:
    """An address to listen on."""
    return None if is_ip_address(value) else "not an IPv4 or IPv6 address, such as 127.0.0.1 or ::"


def address_block(value: str) -> str | None:
    """An IP address, or a block of them (RFC 4632 section 3.1)."""
    try:
        ipaddress.ip_network(value)
    except ValueError:
        return "not an IP address or block of addresses, such as 10.0.0.0/8 (with no bit set after the prefix)"
    return None


def listen_address(value: str) -> str | None:
    """An address to listen on, or ``systemd:NAME`` for a socket that systemd passes (``FileDescriptorName=NAME``)."""
    if value.startswith(SYSTEMD):
        return name(value.removeprefix(SYSTEMD))
    complaint = ip_address(value)
    return complaint and f"{complaint}, nor systemd:NAME"


def http_method(value: str) -> str | None:
    """A method is a token in upper case (RFC 9110 section 9.1)."""
    if _TOKEN.match(value) and value == value.upper():
        return None
    return "not an HTTP method in upper case, such as GET or POST"


def header_name(value: str) -> str | None:
    """A field name (RFC 9110 section 5.1) that says nothing else already."""
    if not _TOKEN.match(value):
        return "not the name of a header field, such as X-PACS"
    if value.lower() in _MEANT:
        return "a header field that means something else"
    return None


def path_prefix(value: str) -> str | None:
    """A path as it is after percent-decoding: whole segments, none empty, no dot segments."""
    if not value.startswith("/"):
        return "a path prefix starts with '/'"
    if not value.isprintable() or any(char in value for char in "?#%\\ "):
        return "a path prefix has no '?', '#', '%', backslash, space or control character"
    if "//" in value or {".", ".."} & set(value.split("/")):
        return "a path prefix has no empty, '.' or '..' segment"
    return None


def path_rule(value: str) -> str | None:
    """A ``path_filter`` rule: literal segments and ``{name}`` for any one segment."""
    complaint = path_prefix(value)
    if complaint:
        return complaint.replace("path prefix", "rule")
    for segment in value.split("/"):
        if ("{" in segment or "}" in segment) and not _RULE_SEGMENT.match(segment):
            return "a variable is a whole segment, such as {id}"
    return None


def base_url(value: str) -> str | None:
    """An absolute http or https URL without user, query and fragment, to which paths are appended."""
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError:
        return "not a URL"
    if parts.scheme not in {"http", "https"} or not parts.hostname or host(parts.hostname):
        return "not an absolute URL, such as http://127.0.0.1:8888"
    if port == 0 or not value.isprintable() or " " in value or "\\" in value:
        return "not a URL that can be connected to"
    if parts.username is not None or parts.query or parts.fragment or value.endswith(("?", "#")):
        return "a base URL has no user name, query or fragment"
    return None


def origin(value: str) -> str | None:
    """An origin of web pages (RFC 6454 section 7), or ``*``."""
    if value == "*":
        return None
    complaint = base_url(value)
    if complaint or urlsplit(value).path:
        return "not an origin, such as https://viewer.example.org, or *"
    return None


def path(value: str) -> str | None:
    """A path of the file system, absolute or relative."""
    if not 1 <= len(value) <= 1024 or not value.isprintable():
        return "not a usable path: 1 to 1024 printable characters"
    return None


def plain_text(value: str) -> str | None:
    """A line of text for logs: no control characters."""
    if not value.strip() or len(value) > 128:
        return "1 to 128 characters, not only spaces"
    return None if value.isprintable() else "no control characters"


def json_media_type(value: str) -> str | None:
    """A media type of JSON (RFC 6839 section 3.1), parameters allowed."""
    essence = value.partition(";")[0].strip().lower()
    kind, _, subtype = essence.partition("/")
    if not value.isascii() or not value.isprintable() or not _TOKEN.match(kind) or not _TOKEN.match(subtype):
        return "not a media type, such as application/fhir+json"
    return None if essence == "application/json" or subtype.endswith("+json") else "not a media type of JSON"
