"""What the rest of harmonyd sees of supervision: specifications in, running children out.

``kept`` children are restarted, probed and logged (store SCPs); ``once`` children run to their end (SCU tools). Both
run through one runner: own session and process group, ``PR_SET_PDEATHSIG``, explicit environment, a watcher that ends
them when the daemon dies, completion at the process's exit (never at end of file alone).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from harmonyd.landlock import Rights

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred


@dataclass(frozen=True, slots=True)
class OnceSpec:
    """A child that runs to its end."""

    name: str
    """For logs and ``supervisorctl``: ``findscu:<operation id>``."""
    argv: tuple[str, ...]
    """``argv[0]`` is an absolute path. Elements that start with "@" are refused (DCMTK expands them to a file)."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Added to the runner's explicit base environment (PATH, LANG, TCP_NODELAY=1)."""
    log_fields: Mapping[str, str] = field(default_factory=dict)
    """Joined to each log line about this child: ``request`` and ``operation`` (``harmonyd.telemetry.logging``)."""
    on_line: Callable[[bytes], None] | None = None
    """Called on the reactor thread for each line (without its newline) of stdout and stderr."""
    max_output_bytes: int = 1_000_000
    """Kept with the exit record; lines beyond it still reach ``on_line``."""
    stdin: int | None = None
    """A descriptor that the child gets as its standard input; None: it finds that at its end."""
    rights: Rights | None = None
    """None: those of the daemon."""
    log_pipe: bool = False
    """Give the child a third pipe, descriptor 3, whose lines count as output: for programs that close the others."""


@dataclass(frozen=True, slots=True)
class ExitRecord:
    """How a child ended."""

    pid: int
    exit_code: int | None
    """None when a signal ended it."""
    signal: int | None
    output: bytes
    """The first ``max_output_bytes`` of stdout and stderr, in order of arrival."""
    runtime_secs: float
    ended_because: str = ""
    """Why we ended it, where that has to be told to whoever waits for its work."""
    last_line: bytes = b""
    """The last line with anything in it, also when ``output`` ends long before."""


class OnceChild(Protocol):
    """A started once-child."""

    @property
    def pid(self) -> int: ...

    @property
    def exited(self) -> Deferred[ExitRecord]:
        """A new Deferred at each access; fires after the exit and a bounded drain of the pipes, and never fails.

        Cancelling one ends the waiting of its holder, and does nothing to the child.
        """
        ...

    async def stop(self) -> ExitRecord:
        """TERM to the group, grace, KILL to the group; returns when the group is gone. Safe to call at any time."""
        ...


@dataclass(frozen=True, slots=True)
class KeptSpec:
    """A child that is kept running."""

    group: str
    """``storescp`` in ``storescp:incoming-11123``."""
    name: str
    argv: tuple[str, ...]
    port: int
    """The TCP port it must own to be ready."""
    called_aet: str
    """Called AE title of the readiness probe's C-ECHO."""
    env: Mapping[str, str] = field(default_factory=dict)
    on_line: Callable[[bytes], None] | None = None
    rights: Rights | None = None
    """None: those of the daemon."""
    association_timeout_secs: float = 300.0
    """A child that is busy, and about which nothing moved this long, counts as hung."""


class KeptChild(Protocol):
    """A child under supervision."""

    @property
    def spec(self) -> KeptSpec: ...

    @property
    def state(self) -> str:
        """STOPPED, STARTING, RUNNING, BACKOFF, STOPPING, EXITED or FATAL (``supervisor.states``)."""
        ...

    @property
    def pid(self) -> int | None: ...

    @property
    def description(self) -> str:
        """One line for people: why it is in its state."""
        ...

    def when_ready(self) -> Deferred[None]:
        """Fires when RUNNING; fails with ``ChildNotReady`` when FATAL or stopped. Cancellable."""
        ...

    async def stop(self) -> None: ...


class Supervisor(Protocol):
    """Runs all children."""

    def run_once(self, spec: OnceSpec) -> OnceChild:
        """Start a once-child. Raises ``SpawnError`` when it cannot be started."""
        ...

    def keep(self, spec: KeptSpec) -> KeptChild:
        """Start and keep a child. Raises ``ValueError`` when the name is taken."""
        ...

    def drop(self, child: KeptChild) -> None:
        """Forget a kept child for good. Raises ``ValueError`` unless it is STOPPED."""
        ...

    def children(self) -> Sequence[KeptChild]: ...

    async def stop_all(self) -> None:
        """End every child; returns when no process of theirs is left."""
        ...
