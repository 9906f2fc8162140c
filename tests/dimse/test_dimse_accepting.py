"""A port of ours that cannot be opened."""

from __future__ import annotations

import errno
import os
import socket
from typing import Any

import pytest
from twisted.internet.task import Clock

from harmonyd.dimse.accepting import Acceptor
from harmonyd.errors import Unavailable


def test_no_descriptor_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told like a port that is in use."""

    def none(*_: Any) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    acceptor = Acceptor(Clock(), "127.0.0.1", 0)
    with monkeypatch.context() as patched:
        patched.setattr(socket, "socket", none)
        with pytest.raises(Unavailable, match="Too many open files"):
            acceptor.listen()
    assert not acceptor.is_open
