"""``harmonyd hash-password``: what the configuration has of a password, or of an API key."""

from __future__ import annotations

import getpass
import secrets
import sys

from harmonyd.passwords import digest_of_key, hash_password

_LEAST_KEY = 32


def hash_from_terminal() -> int:
    """Ask for a password, twice at a terminal; print its hash. Return the exit status."""
    if sys.stdin.isatty():
        password = getpass.getpass("Password: ")
        if password != getpass.getpass("Again: "):
            return _refused("The two differ.")
    else:
        password = _line()
    try:
        print(hash_password(password))
    except ValueError as error:
        return _refused(f"Not a usable password: {error}.")
    return 0


def make_api_key(*, given: bool) -> int:
    """Print a new key and its digest; with ``given`` only the digest of a key that is read. Return the exit status."""
    if not given:
        key = secrets.token_urlsafe(32)
        print(f"key:    {key}\nsha256: {digest_of_key(key)}")
        return 0
    key = getpass.getpass("Key: ") if sys.stdin.isatty() else _line()
    if len(key) < _LEAST_KEY:
        return _refused(f"A key has {_LEAST_KEY} characters at least, at random: leave --stdin out to have one made.")
    print(f"sha256: {digest_of_key(key)}")
    return 0


def _line() -> str:
    return sys.stdin.buffer.readline().decode("utf-8", "surrogateescape").rstrip("\r\n")


def _refused(why: str) -> int:
    print(why, file=sys.stderr)
    return 1
