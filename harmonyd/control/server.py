"""The control interface as a whole: listens, checks who comes in, and hands on to methods and followers."""

# mypy: allow-untyped-calls
# (most methods of Twisted's classes have no types)

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from typing import Any
from urllib.parse import unquote

from supervisor.xmlrpc import RPCError
from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.logger import Logger
from twisted.python.failure import Failure

from harmonyd.config.daemon import ControlConfig
from harmonyd.control import calls
from harmonyd.control.api import Controlled, LogView
from harmonyd.control.daemon_methods import DaemonMethods, LogMethods, SystemMethods
from harmonyd.control.follow import Follower
from harmonyd.control.http import ControlFactory, ControlRequest, Guard, Refused
from harmonyd.control.listening import listen_tcp, listen_unix
from harmonyd.control.methods import Dispatcher, Method, public_methods
from harmonyd.control.names import one
from harmonyd.control.processes import Known, ProcessMethods

STOP_SECS = 2.0
"""How long answers that are under way may take when the daemon stops."""
_TEXT = {"Content-Type": "text/plain; charset=utf-8"}


class ControlServer:
    """Serves ``daemon`` to ``supervisorctl``; start it first and stop it last, so that both can be watched."""

    _log = Logger("harmonyd.control")

    def __init__(self, reactor: Any, config: ControlConfig, daemon: Controlled, *own: object) -> None:
        """``own``: parts of the namespace ``harmonyd``."""
        self._reactor = reactor
        self._config = config
        self._daemon = daemon
        self._dispatcher = Dispatcher(_methods(daemon, reactor, own))
        self._factories: list[ControlFactory] = []
        self._ports: list[Any] = []
        self._followers: set[Follower] = set()
        self._emptied: Deferred[None] | None = None

    @property
    def tcp_port(self) -> int | None:
        """The TCP port that is bound."""
        hosts = [port.getHost() for port in self._ports]
        return next((int(host.port) for host in hosts if hasattr(host, "port")), None)

    async def start(self) -> None:
        """Listen. Raises ``CannotControl``."""
        config = self._config
        if config.socket is not None:
            factory = self._factory(Guard())
            self._ports.append(await listen_unix(self._reactor, config.socket, config.mode, factory))
            self._log.info("supervisorctl can connect to unix://{path}", path=str(config.socket))
        if config.bind_address is not None:
            factory = self._factory(Guard(config.username, config.password))
            port = await listen_tcp(self._reactor, config.bind_address, config.bind_port, factory)
            self._ports.append(port)
            self._log.info(
                "supervisorctl can connect to {host} port {port}", host=config.bind_address, port=self.tcp_port
            )

    async def stop(self) -> None:
        """Accept nothing new, end followers, finish what is under way within ``STOP_SECS``. Safe to call twice."""
        ports, self._ports = self._ports, []
        for port in ports:
            await port.stopListening()
        for follower in list(self._followers):
            follower.end()
        for factory in self._factories:
            factory.close_idle()
        if not await self._is_empty_within(STOP_SECS):
            for factory in self._factories:
                factory.abort_all()
            await self._is_empty_within(STOP_SECS)

    def _factory(self, guard: Guard) -> ControlFactory:
        factory = ControlFactory(self._reactor, _Entrance(self, guard), self._tell_if_empty)
        self._factories.append(factory)
        return factory

    def _is_empty(self) -> bool:
        return not any(factory.channels for factory in self._factories)

    def _tell_if_empty(self) -> None:
        if self._emptied is not None and not self._emptied.called and self._is_empty():
            self._emptied.callback(None)

    async def _is_empty_within(self, secs: float) -> bool:
        if self._is_empty():
            return True
        self._emptied = Deferred()
        try:
            await self._emptied.addTimeout(secs, self._reactor)
        except DeferredTimeout:
            return False
        return True

    # --- what is asked for

    async def answer(self, request: ControlRequest) -> None:
        """Answer a request that may come in. Raises ``Refused``."""
        path = unquote(request.uri.split(b"?", 1)[0].decode("latin-1")).rstrip("/")
        if path == "/RPC2":
            _require(request, "POST")
            await self._call(request)
        elif path == "/mainlogtail":
            _require(request, "GET")
            await self._follow(request, self._daemon.main_log, "")
        elif path.startswith("/logtail/"):
            _require(request, "GET")
            await self._follow(request, *self._log_of(path.removeprefix("/logtail/")))
        else:
            raise Refused(404, "Served here: POST /RPC2, GET /logtail/NAME/stdout, GET /mainlogtail.")

    async def _call(self, request: ControlRequest) -> None:
        if (request.field("content-type") or "").partition(";")[0].strip().lower() != "text/xml":
            raise Refused(415, "A call is XML: Content-Type: text/xml.")
        try:
            method, parameters = calls.parse(request.content.getvalue())
        except calls.BadCall as error:
            raise Refused(400, error.detail) from None
        try:
            document = calls.answer(await self._dispatcher.call(method, parameters, _peer(request)))
        except RPCError as error:
            document = calls.fault(error)
        request.reply(200, {"Content-Type": "text/xml; charset=utf-8"}, document)

    def _log_of(self, rest: str) -> tuple[LogView, str]:
        name, _, channel = rest.partition("/")
        try:
            child = one(self._daemon.children(), name)
        except RPCError:
            raise Refused(404, "There is no such process.") from None
        if channel not in ("", "stdout"):
            raise Refused(404, "Both streams are in one log: ask for stdout.")
        return child.log, name

    async def _follow(self, request: ControlRequest, log: LogView, name: str) -> None:
        request.begin(200, {**_TEXT, "Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        request.close_after()

        def is_there() -> bool:
            return not name or any(child.log.ring is log.ring for child in self._daemon.children())

        follower = Follower(self._reactor, request, log, is_there)
        self._followers.add(follower)
        request.notifyFinish().addBoth(lambda _: self._followers.discard(follower))
        await follower.run()


class _Entrance:
    """What one listener serves: the server, behind its guard."""

    def __init__(self, server: ControlServer, guard: Guard) -> None:
        self._server = server
        self._guard = guard

    def serve(self, request: ControlRequest) -> None:
        """Answer, whatever happens (``Service``)."""
        Deferred.fromCoroutine(self._serve(request)).addErrback(self._broke, request)

    async def _serve(self, request: ControlRequest) -> None:
        try:
            self._guard.check(request)
            await self._server.answer(request)
        except Refused as refused:
            request.reply(refused.status, {**_TEXT, **refused.headers}, f"{refused.text}\n".encode())

    def _broke(self, failure: Failure, request: ControlRequest) -> None:
        self._server._log.failure("a request to the control interface was not answered", failure)
        if not request.gone and not request.startedWriting:
            request.reply(500, _TEXT, b"An error inside harmonyd; its log says more.\n")


def _require(request: ControlRequest, method: str) -> None:
    if request.method != method.encode("ascii"):
        raise Refused(405, f"Only {method} is possible here.", {"Allow": method})


def _methods(daemon: Controlled, reactor: Any, own: Sequence[object]) -> dict[str, Method]:
    known = Known()
    parts = (DaemonMethods(daemon, known), ProcessMethods(daemon, reactor, known), LogMethods(daemon, reactor))
    table = public_methods("supervisor", *parts) | public_methods("harmonyd", *own)
    dispatcher = Dispatcher(table)

    async def call(name: str, parameters: tuple[Any, ...]) -> Any:
        return await dispatcher.call(name, parameters, "a multicall")

    table.update(public_methods("system", SystemMethods(table, call)))
    return table


def _peer(request: ControlRequest) -> str:
    """Who is at the other end, for the log."""
    connection = request.channel.transport.socket
    if connection.family == socket.AF_UNIX:
        size = struct.calcsize("3i")
        pid, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
        return f"pid {pid} of user {uid}"
    return str(request.getClientAddress().host)
