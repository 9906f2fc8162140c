"""Clients of a control server; each call runs in a thread, while the reactor of the test serves it."""

from __future__ import annotations

import http.client
import socket
import xmlrpc.client
from pathlib import Path
from typing import Any

import pytest
from supervisor.xmlrpc import SupervisorTransport
from twisted.internet.threads import deferToThread

from harmonyd.control.server import ControlServer


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=20)
        self._path = path

    def connect(self) -> None:
        """Connect to the path."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(20)
        self.sock.connect(str(self._path))


class Client:
    """Calls the server from a thread, while the reactor serves."""

    def __init__(self, path: Path, server: ControlServer) -> None:
        self.path = path
        self.server = server

    async def call(self, method: str, *parameters: Any) -> Any:
        """One XML-RPC call with supervisor's own transport. Raises ``xmlrpc.client.Fault``."""
        return await deferToThread(self._call, method, parameters)

    def _call(self, method: str, parameters: tuple[Any, ...]) -> Any:
        transport = SupervisorTransport(None, None, f"unix://{self.path}")
        try:
            return getattr(xmlrpc.client.ServerProxy("http://127.0.0.1", transport=transport), method)(*parameters)
        finally:
            transport.close()

    async def fault(self, method: str, *parameters: Any) -> tuple[int, str]:
        """Code and text of the fault that a call must end with."""
        with pytest.raises(xmlrpc.client.Fault) as caught:
            await self.call(method, *parameters)
        return caught.value.faultCode, caught.value.faultString

    async def http(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        """Status and body of one request."""
        return await deferToThread(exchange, UnixConnection(self.path), method, path, body, headers)

    async def post(self, body: bytes, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
        """An XML-RPC body as it is."""
        return await self.http("POST", "/RPC2", body, {"Content-Type": "text/xml", **(headers or {})})


def exchange(
    connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None, headers: dict[str, str] | None
) -> tuple[int, bytes]:
    """One request, read to its end. Blocking."""
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()
