"""``harmonyd demo``: an embedded PACS with real data, the daemon, and four requests over HTTP with their answers."""

from harmonyd.demo.main import demo

__all__ = ["demo"]
