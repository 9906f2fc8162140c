"""The audit trail of a daemon, and what the daemon itself tells it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from harmonyd.audit.api import AuditEvent, AuditKind, Outcome
from harmonyd.audit.batches import Batches
from harmonyd.audit.trail import AuditTrail
from harmonyd.config.audit_model import AuditConfig
from harmonyd.config.model import Config
from harmonyd.daemon.named import dicom_endpoints
from harmonyd.services.base import Backend
from harmonyd.services.dicom.backend import DicomBackend
from harmonyd.supervision.process import in_thread


class DaemonAudit:
    """Belongs to one daemon."""

    def __init__(self, reactor: Any, config: Config) -> None:
        self._reactor = reactor
        self.trail = AuditTrail(config.storage.path, _settings(config))
        self.batches = Batches(reactor, self.trail)
        self._is_up = False

    async def start(self) -> None:
        """Write from now on. Raises ``AuditUnusable``."""
        await in_thread(self._reactor, self.trail.start)

    def configure(self, config: Config) -> None:
        """Another configuration is in force: that is told, too, also by a trail that ends with it."""
        was, is_ = self.trail.enabled, config.audit.enabled
        if was and not is_:
            self._alert("audit-recording-stopped", "The audit trail was switched off by a change of the configuration")
        self.trail.configure(_settings(config))
        if is_ and was:
            self._alert("security-configuration", "The configuration was read again")
        elif is_:
            self._alert("audit-recording-started", "The audit trail was switched on by a change of the configuration")

    def _alert(self, alert: str, text: str) -> None:
        self.trail(AuditEvent(AuditKind.SECURITY_ALERT, Outcome.SUCCESS, text, details={"alert": alert}))

    def up(self, config: Config, backends: Iterable[Backend]) -> None:
        """The daemon has started."""
        self._is_up = True
        self._tell("start", "has started", config, backends)

    async def stop(self, config: Config, backends: Iterable[Backend]) -> None:
        """Nothing goes on any more: tell of it, and see that it is written."""
        self.batches.flush()
        if self._is_up:
            self._tell("stop", "has stopped", config, backends)
        await in_thread(self._reactor, self.trail.stop)

    def _tell(self, event: str, what: str, config: Config, backends: Iterable[Backend]) -> None:
        aets = {options.local_aet for options, _ in dicom_endpoints(config).values()}
        aets |= {backend.remote.local_aet for backend in backends if isinstance(backend, DicomBackend)}
        details = {"event": event, "aets": ";".join(sorted(aets))}
        self.trail(
            AuditEvent(AuditKind.APPLICATION_ACTIVITY, Outcome.SUCCESS, f"{config.id} {what}", details=details)
        )


def _settings(config: Config) -> AuditConfig:
    return replace(config.audit, source_id=config.audit.source_id or config.id)
