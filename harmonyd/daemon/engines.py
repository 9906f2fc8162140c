"""The engines that a configuration uses: DCMTK's programs, our own, or both."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Protocol

from harmonyd.config.model import Config, DicomBackendOptions, DicomEndpointOptions
from harmonyd.dimse.accepting import Answered
from harmonyd.dimse.engine import Engine, MoveReceiver

DCMTK, NATIVE = "dcmtk", "native"


class RunningEngine(Engine, Protocol):
    """What the daemon needs of an engine beside its operations."""

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    def association_count(self, only: Collection[Answered] | None = None) -> int:
        """How many inbound associations run that the engine has accepted itself (with these called AE titles)."""
        ...

    def accept_no_more(self) -> None: ...

    def limit_unasked(self, max_bytes: int) -> None: ...

    def keep_receivers(self, wanted: Collection[MoveReceiver]) -> None: ...


class Engines:
    """Made once; ``require`` adds engines that a changed configuration needs. None is taken away again."""

    def __init__(self, make: Mapping[str, Callable[[], RunningEngine]]) -> None:
        self._make = make
        self._engines: dict[str, RunningEngine] = {}
        self._started: set[str] = set()

    def __getitem__(self, name: str) -> Engine:
        return self._engines[name]

    def require(self, names: Iterable[str]) -> None:
        """Make those that are missing. Raises what making one raises."""
        for name in sorted(set(names) - self._engines.keys()):
            self._engines[name] = self._make[name]()

    async def start(self) -> None:
        """Start those that do not run yet. Raises OSError."""
        for name in self._engines.keys() - self._started:
            await self._engines[name].start()
            self._started.add(name)

    async def close(self) -> None:
        """End what they hold; children are the supervisor's to end."""
        for engine in self._engines.values():
            await engine.close()

    def association_count(self, only: Collection[Answered] | None = None) -> int:
        """How many inbound associations run that an engine has accepted itself (with these called AE titles)."""
        return sum(engine.association_count(only) for engine in self._engines.values())

    def accept_no_more(self) -> None:
        """Close the ports on which engines listen themselves; associations that run go on."""
        for engine in self._engines.values():
            engine.accept_no_more()

    def limit_unasked(self, max_bytes: int) -> None:
        """How much of what nobody asked for may lie in quarantine, for each."""
        for engine in self._engines.values():
            engine.limit_unasked(max_bytes)

    def keep_receivers(self, wanted: Mapping[str, Collection[MoveReceiver]]) -> None:
        """Close receivers for C-MOVE that are not among these (by engine), once no move needs them."""
        for name, engine in self._engines.items():
            engine.keep_receivers(wanted.get(name, ()))


def engines_in(config: Config) -> frozenset[str]:
    """Names of the engines that the dicom endpoints and backends of any pipeline use."""
    endpoints = (config.endpoints[name].options for item in config.pipelines.values() for name in item.endpoints)
    backends = (config.backends[name].options for item in config.pipelines.values() for name in item.backends)
    return frozenset(
        options.engine
        for options in (*endpoints, *backends)
        if isinstance(options, DicomEndpointOptions | DicomBackendOptions)
    )


def needs_dcmtk(config: Config) -> bool:
    """Does anything in it run DCMTK's programs?"""
    return DCMTK in engines_in(config)
