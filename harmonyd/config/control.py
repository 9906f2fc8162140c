"""``[control]``: where the stock ``supervisorctl`` connects."""

from __future__ import annotations

import os
import re
from pathlib import Path

from harmonyd.config import checks
from harmonyd.config.daemon import ControlConfig
from harmonyd.config.fields import Section

SOCKET = Path("run/control.sock")
"""Below the storage path."""
MAX_SOCKET_PATH_BYTES = 107
"""What fits into ``sun_path`` (unix(7)) with its NUL."""
_MODE = re.compile(r"0?[0-7]{3}\Z")


def control(section: Section, base: Path, storage: Path) -> ControlConfig:
    """Read the table; ``base`` is the folder of config.toml."""
    tcp_keys = [key for key in ("bind_address", "bind_port", "username", "password") if key in section]
    if tcp_keys:
        section.require("bind_address", "bind_port", "username", "password")
    address = section.text("bind_address", "", checks.ip_address)
    port = section.port("bind_port", 9001)
    result = ControlConfig(
        socket=_socket(section, base, storage),
        mode=int(section.text("mode", "0660", _mode), 8),
        bind_address=address or None,
        bind_port=port if tcp_keys else 0,
        username=section.text("username", "", _username),
        password=secret(section, "password", base),
    )
    if address and not checks.is_loopback(address):
        section.warn("bind_address", "the password crosses the network as it is: use a tunnel, or 127.0.0.1")
    section.finish()
    return result


def _socket(section: Section, base: Path, storage: Path) -> Path | None:
    given = section.text("socket", "", checks.path)
    path = (base / given).absolute() if given else storage / SOCKET
    length = len(os.fsencode(path))
    if length <= MAX_SOCKET_PATH_BYTES:
        return path
    what = f"the path of the control socket has {length} bytes, and {MAX_SOCKET_PATH_BYTES} are possible"
    if given:
        section.problem("socket", what, "choose a shorter one")
    else:
        section.warn("socket", f"{what}: there is none, and supervisorctl cannot connect; name a shorter one ({path})")
    return None


def _mode(value: str) -> str | None:
    return None if _MODE.match(value) else 'not a mode, such as "0660" (owner and group) or "0600"'


def _username(value: str) -> str | None:
    """RFC 7617 section 2: no colon, no control characters."""
    return None if value and value.isprintable() and ":" not in value else "1 or more characters, no colon"


def secret(section: Section, key: str, base: Path) -> str:
    """A value that may be elsewhere: ``file:PATH`` (without its last newline) or ``env:NAME``.

    A plain one is taken with a warning, because configurations are shown around.
    """
    value = section.text(key)
    kind, colon, rest = value.partition(":")
    if colon and kind == "file":
        return _secret_of_file(section, key, base / rest)
    if colon and kind == "env":
        found = os.environ.get(rest, "")
        if not found:
            section.problem(key, f"the environment variable {rest} is empty or not set", "set it")
        return found
    if value:
        section.warn(key, 'it is in the file as it is: "file:PATH" or "env:NAME" keep it elsewhere')
    elif key in section and section.sound:
        section.problem(key, "empty", "choose one")
    return value


def _secret_of_file(section: Section, key: str, path: Path) -> str:
    try:
        text = path.read_text("utf-8").removesuffix("\n")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        section.problem(key, f"{path} cannot be read: {reason}", "name a file that this user may read")
        return ""
    if not text:
        section.problem(key, f"{path} is empty", "write the secret into it")
    return text
