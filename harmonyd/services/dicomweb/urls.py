"""The URLs that answers have in them, RetrieveURL for one (PS3.18 section 8.2)."""

from __future__ import annotations

import re

from harmonyd.services.base import HttpRequest

_HOST = re.compile(r"[0-9A-Za-z._~-]+(?::[0-9]{1,5})?|\[[0-9A-Fa-f:.]+\](?::[0-9]{1,5})?")


def base_url(request: HttpRequest, public_url: str) -> str:
    """Return what stands before ``/studies``: the configured URL, else how it came and the Host that the client named.

    A Host that is none makes it a path: nothing that a client sends becomes part of a URL unchecked.
    """
    host = request.headers.get("host", "").strip()
    scheme = "https" if request.is_secure else "http"
    front = public_url or (f"{scheme}://{host}" if _HOST.fullmatch(host) else "")
    return front + request.prefix
