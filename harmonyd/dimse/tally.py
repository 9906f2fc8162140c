"""How the objects of a store stand, counted as the remote node answers."""

from __future__ import annotations

from harmonyd.dimse.status import StatusCategory, category
from harmonyd.progress import Progress


class Tally:
    """Tells ``progress``. ``total``: how many objects there are to be sent."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress = progress
        self._remaining = total
        self._completed = self._failed = self._warning = 0
        self._tell()

    def add(self, status: int | None) -> None:
        """One more has an answer; None: it was not sent, or not answered."""
        kind = None if status is None else category(status)
        self._completed += kind is StatusCategory.SUCCESS
        self._warning += kind is StatusCategory.WARNING
        self._failed += kind not in (StatusCategory.SUCCESS, StatusCategory.WARNING)
        self._remaining -= 1
        if kind in (StatusCategory.SUCCESS, StatusCategory.WARNING):
            self._progress.arrived(0)
        self._tell()

    def _tell(self) -> None:
        self._progress.counted(self._completed, self._failed, self._warning, max(0, self._remaining))
