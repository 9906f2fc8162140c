"""``acknowledge`` of a dicom endpoint: who decides what a C-STORE is answered with, and the statuses for that."""

from __future__ import annotations

from harmonyd.acknowledge import PipelineAnswers
from harmonyd.config.fields import Section

SPOOL, PIPELINE = "spool", "pipeline"
_DEPEND = ("acknowledge_timeout_ms", "acknowledge_status")
_FAILURES = frozenset({0x0110, 0x0111, 0x0117, 0x0122, 0x0124, 0x0213})
"""PS3.7 section 9.1.1.1.9 and Annex C, as far as they say why an object is not taken."""
_CLASSES = (0xA7, 0xA9, *range(0xC0, 0xD0))
"""First digits of failures (PS3.4 table B.2-1)."""
_WARNINGS = frozenset({0xB000, 0xB006, 0xB007})
_ALLOWED = "allowed: 0xA7nn, 0xA9nn, 0xCnnn, " + ", ".join(f"0x{status:04X}" for status in sorted(_FAILURES))


def answers(section: Section, *, can_wait: bool) -> PipelineAnswers | None:
    """None: the spool decides. ``can_wait``: the engine can keep a sender waiting."""
    is_pipeline = section.choice("acknowledge", SPOOL, [SPOOL, PIPELINE]) == PIPELINE
    defaults = PipelineAnswers()
    timeout_secs = section.milliseconds("acknowledge_timeout_ms", defaults.timeout_secs)
    table = section.table("acknowledge_status")
    found = PipelineAnswers(
        timeout_secs,
        refused=_status(table, "refused", _WARNINGS) or defaults.refused,
        failed=_status(table, "failed"),
        away=_status(table, "away") or defaults.away,
        deadline=_status(table, "deadline") or defaults.deadline,
    )
    table.finish()
    if not is_pipeline:
        for key in _DEPEND:
            if key in section:
                section.warn(key, f'it has no effect without acknowledge = "{PIPELINE}"')
        return None
    if not can_wait:
        what = "the dcmtk engine cannot wait for the pipeline: storescp answers by itself"
        section.problem("acknowledge", what, 'set engine = "native", which can')
    if section.raw("in_order"):
        what = f'acknowledge = "{PIPELINE}" puts nothing in a queue that could keep an order'
        section.problem("in_order", what, "remove one of the two")
    return found


def _status(table: Section, key: str, warnings: frozenset[int] = frozenset()) -> int | None:
    """A status that tells the sender to keep its object, or one of ``warnings``; None when absent or wrong."""
    if key not in table:
        table.raw(key)
        return None
    status = table.integer(key, 0, 1, 0xFFFF)
    if status in _FAILURES | warnings or status >> 8 in _CLASSES:
        return status
    if status in _WARNINGS:
        what = "with a warning the sender takes its object for stored, and it would be lost"
        table.problem(key, what, f"{_ALLOWED}; only for `refused` a warning")
    elif status:
        also = "".join(f", 0x{warning:04X}" for warning in sorted(warnings))
        table.problem(key, "not a status with which a C-STORE is refused", f"{_ALLOWED}{also}")
    return None
