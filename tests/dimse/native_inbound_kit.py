"""A real store SCP of the native engine for tests; the spool behind it is a fake one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from inbound_kit import FakeSpool, descriptors

from harmonyd.dimse.engine import StoreScpConfig
from harmonyd.dimse.native import listener
from harmonyd.dimse.native.listeners import Listeners
from harmonyd.dimse.native.scp import NativeStoreScp
from harmonyd.dimse.threads import in_thread


class NativeInbound:
    """A store SCP of the native engine, from ``start`` to ``stop``; what tests use is as in ``Inbound``."""

    engine_name = "native"
    listener_module = listener

    def __init__(self, reactor: Any, folder: Path, **options: Any) -> None:
        self.reactor = reactor
        self.listeners = Listeners(reactor)
        self.config = StoreScpConfig("scp", "SCP", port=0, **{"bind_addr": "127.0.0.1", **options})
        self.spool = FakeSpool(folder / "taken")
        self.receiving = folder / "storage" / "spool" / "receiving"
        self.scp = self.new_scp()
        self.incoming = self.receiving / "scp" / "native"
        self.descriptors = set(descriptors())
        self.port = 0

    def new_scp(self) -> NativeStoreScp:
        return NativeStoreScp(self.reactor, self.config, self.spool, self.spool, self.receiving, self.listeners)

    async def start(self) -> None:
        await self.scp.start()
        ((_, self.listener),) = self.listeners._open.items()
        self.port = self.listener.port

    async def stop(self) -> None:
        await self.scp.stop()
        self.listeners.close()

    async def in_thread(self, function: Callable[..., Any], *args: Any) -> Any:
        return await in_thread(self.reactor, function, *args)

    def on_its_port(self) -> StoreScpConfig:
        """The configuration for another ``resume``."""
        return replace(self.config, port=self.port)

    @property
    def associations(self) -> int:
        """How many associations run."""
        return self.listeners.association_count()

    @property
    def is_untouched(self) -> bool:
        """No association runs."""
        return not self.associations

    def new_descriptors(self) -> list[str]:
        """What is open now and was not when this was made."""
        return [what for number, what in descriptors().items() if number not in self.descriptors]
