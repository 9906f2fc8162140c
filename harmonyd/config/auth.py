"""Middleware for identity: ``basic_auth``, ``api_key``, ``client_certificate`` and ``calling_aet``."""

from __future__ import annotations

import ipaddress
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from harmonyd.config import checks
from harmonyd.config.control import secret
from harmonyd.config.fields import Section
from harmonyd.passwords import MOST_BYTES, PlainPassword, Stored, parse

TYPES = ("basic_auth", "jwt_auth", "jwtauth", "api_key", "client_certificate", "calling_aet")
"""Those that find out who asks."""
IDENTITY_TYPES = (*TYPES, "authorize")
_MOST_NAME = 256
_MOST_FILE_BYTES = 10_000_000
_KEY_DIGEST = re.compile(r"[0-9a-f]{64}\Z")
_FINGERPRINT = re.compile(r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){31}\Z")


def basic_auth(base: Path, section: Section) -> Mapping[str, Any]:
    """``users`` by name: what the password is compared with, and roles. ``base``: the folder of config.toml."""
    section.ignore(["token_path"], "users and their passwords are in users, or in the file users_path")
    users: dict[str, tuple[Stored, frozenset[str]]] = {}
    for name, entry in section.table("users").tables().items():
        _check_name(entry, name)
        entry.require("password_hash")
        line = entry.text("password_hash", "", _hash)
        found = roles(entry)
        entry.finish()
        if entry.sound:
            users[name] = (parse(line), found)
    for number, name, rest, names in _lines(section, "users_path", base, "NAME:HASH:ROLE,ROLE"):
        if (complaint := _user_name(name) or _hash(rest)) is not None:
            section.problem("users_path", f"line {number}: {complaint}", "`harmonyd hash-password` prints the hash")
        elif name in users:
            section.problem("users_path", f"line {number}: this user was there before", "remove one")
        else:
            users[name] = (parse(rest), names)
    _one_user(section, base, users)
    options = {"users": users, "realm": section.text("realm", "harmonyd", _realm), **_common(section)}
    if section.sound and not users:
        section.problem(None, "there is no user", "add one to users, or name a file as users_path")
    section.finish()
    return options


def _one_user(section: Section, base: Path, users: dict[str, tuple[Stored, frozenset[str]]]) -> None:
    """Harmony's spelling for one user, with ``password_hash`` or (with a warning) the password itself."""
    keys = ("username", "password", "password_hash", "roles")
    if not [key for key in keys if section.raw(key) is not None]:
        return
    section.require("username")
    name = section.text("username", "", _user_name)
    found = roles(section)
    stored: Stored | None = None
    if "password_hash" in section:
        section.refuse("password", "password_hash is there too")
        line = section.text("password_hash", "", _hash)
        stored = parse(line) if section.sound else None
    else:
        section.require("password")
        password = secret(section, "password", base)
        if len(password.encode()) > MOST_BYTES:
            section.problem("password", "too long", f"{MOST_BYTES} bytes at most")
        stored = PlainPassword(password)
        section.warn("password", "password_hash keeps it from those who read the file: see `harmonyd hash-password`")
    if section.sound and stored is not None:
        if name in users:
            section.problem("username", "this user is there already", "remove one")
        users[name] = (stored, found)


def api_key(base: Path, section: Section) -> Mapping[str, Any]:
    """``keys`` by name: SHA-256 in hex, and roles."""
    keys: dict[str, tuple[str, frozenset[str]]] = {}
    for name, entry in section.table("keys").tables().items():
        _check_name(entry, name)
        entry.require("sha256")
        digest = entry.text("sha256", "", _key_digest)
        found = roles(entry)
        entry.finish()
        if entry.sound:
            keys[name] = (digest, found)
    for number, name, rest, names in _lines(section, "keys_path", base, "NAME:SHA256:ROLE,ROLE"):
        if (complaint := _user_name(name) or _key_digest(rest)) is not None:
            section.problem("keys_path", f"line {number}: {complaint}", "`harmonyd hash-password --api-key` prints it")
        elif name in keys:
            section.problem("keys_path", f"line {number}: this name was there before", "remove one")
        else:
            keys[name] = (rest, names)
    options = {"header": section.text("header", "X-API-Key", checks.header_name), "keys": keys, **_common(section)}
    if section.sound and not keys:
        section.problem(None, "there is no key", "add one to keys, or name a file as keys_path")
    section.finish()
    return options


def client_certificate(section: Section) -> Mapping[str, Any]:
    """``certificates`` by name or fingerprint: roles. ``others``: those of all other trusted ones, None to refuse."""
    known: dict[str, frozenset[str]] = {}
    for name, entry in section.table("certificates").tables().items():
        key = name.replace(":", "").lower() if _FINGERPRINT.match(name) else name
        known[key] = roles(entry)
        entry.finish()
    others = frozenset(section.strings("other_roles", _role)) if "other_roles" in section else None
    section.raw("other_roles")
    options = {"certificates": known, "others": others, "optional": section.flag("optional", False)}
    if section.sound and not known and others is None:
        section.problem(None, "no certificate is known", "add certificates, or other_roles for all that are trusted")
    section.finish()
    return options


def calling_aet(section: Section) -> Mapping[str, Any]:
    """``aets`` by AE title: roles, and the networks that it may call from."""
    section.require("aets")
    known: dict[str, tuple[frozenset[str], tuple[Any, ...]]] = {}
    for name, entry in section.table("aets").tables().items():
        if (complaint := checks.ae_title(name)) is not None:
            entry.problem(None, complaint, "rename it")
        places = entry.strings("addresses", _network)
        found = roles(entry)
        entry.finish()
        if entry.sound:
            known[name.strip()] = (found, tuple(map(ipaddress.ip_network, places)))
    optional = section.flag("optional", False)
    section.finish()
    return {"aets": known, "optional": optional}


def roles(section: Section) -> frozenset[str]:
    """The key ``roles``."""
    return frozenset(section.strings("roles", _role))


def _common(section: Section) -> dict[str, Any]:
    return {
        "optional": section.flag("optional", False),
        "forward_credentials": section.flag("forward_credentials", False),
    }


common = _common


def _lines(section: Section, key: str, base: Path, form: str) -> Iterator[tuple[int, str, str, frozenset[str]]]:
    """Number, name, what it has, and roles, of each line that is neither empty nor begins with ``#``."""
    given = section.text(key, "", checks.path)
    if not given:
        return
    path = (base / given).resolve()
    try:
        data = path.read_bytes()
        mode = path.stat().st_mode
        text = data.decode("utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        section.problem(key, f"{path} cannot be read: {reason}", "name a file that this user may read")
        return
    if len(data) > _MOST_FILE_BYTES:
        section.problem(key, f"{path} has more than {_MOST_FILE_BYTES} bytes", "that is no list of users")
        return
    if mode & stat.S_IROTH:
        section.warn(key, f"everybody on this machine may read {path}: chmod o= {path}")
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        parts = line.strip().split(":")
        if not 2 <= len(parts) <= 3:
            section.problem(key, f"line {number} is not {form}", "a name has no colon")
            continue
        names = [role.strip() for role in parts[2].split(",")] if len(parts) > 2 else []
        for role in filter(None, names):
            if (complaint := _role(role)) is not None:
                section.problem(key, f"line {number}: {complaint}")
        yield number, parts[0], parts[1], frozenset(filter(None, names))


def _check_name(section: Section, name: str) -> None:
    if (complaint := _user_name(name)) is not None:
        section.problem(None, complaint, "rename it")


def _user_name(value: str) -> str | None:
    """RFC 7617 section 2: no colon, no control characters."""
    if 1 <= len(value) <= _MOST_NAME and value.isprintable() and ":" not in value:
        return None
    return f"a name has 1 to {_MOST_NAME} characters, no colon and no control characters"


def _role(value: str) -> str | None:
    if value in ("*", "anonymous"):
        return f'"{value}" stands for everybody in rules, and is nobody\'s role'
    return checks.plain_text(value)


def _hash(value: str) -> str | None:
    try:
        parse(value)
    except ValueError as error:
        return str(error)
    return None


def _key_digest(value: str) -> str | None:
    return None if _KEY_DIGEST.match(value) else "not a SHA-256 in 64 hexadecimal digits, small letters"


def _realm(value: str) -> str | None:
    return checks.plain_text(value) or ('no " and no backslash' if '"' in value or "\\" in value else None)


def _network(value: str) -> str | None:
    try:
        ipaddress.ip_network(value)
    except ValueError:
        return "not an address or network, such as 10.0.0.5 or 10.0.0.0/24"
    return None
