"""The configuration file that every test here begins with, and the types of the fixtures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from harmonyd.config import Problem
from harmonyd.config.model import Config

MAIN = """
[proxy]
id = "test"
[network.default.http]
bind_address = "127.0.0.1"
bind_port = 8080
"""

Write = Callable[..., Path]
Problems = Callable[..., list[Problem]]
Loaded = Callable[..., Config]
