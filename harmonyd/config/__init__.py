"""TOML in, one frozen, validated model out; every mistake at once, with file and key."""

from harmonyd.config.errors import ConfigError, Problem
from harmonyd.config.load import load

__all__ = ["ConfigError", "Problem", "load"]
