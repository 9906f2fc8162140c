"""The truth about a retrieve: what the node counted, what arrived, and what was asked for, compared."""

from __future__ import annotations

from harmonyd.dimse.accept import Intake
from harmonyd.dimse.engine import Outcome
from harmonyd.dimse.failures import ended_with


def reconcile(outcome: Outcome, intake: Intake) -> None:
    """Compare what the PACS counted, what arrived, and what was asked for by UID; note in ``outcome`` what differs."""
    counters, arrived = outcome.suboperations, len(intake.arrived)
    if outcome.status and not (counters and (counters.failed or counters.warning)):
        outcome.incomplete(ended_with(outcome))
    if counters is not None:
        delivered = (counters.completed or 0) + (counters.warning or 0)
        if counters.failed:
            outcome.incomplete(f"the PACS counted {counters.failed} failed sub-operations")
        if counters.remaining:
            outcome.incomplete(f"the PACS left {counters.remaining} sub-operations undone")
        if counters.completed is not None and delivered > arrived:
            outcome.incomplete(f"the PACS counted {delivered} instances delivered, {arrived} arrived")
        if counters.completed is not None and delivered < arrived:
            outcome.warnings.append(f"the PACS counted {delivered} instances delivered, {arrived} arrived")
    missing = intake.wanted.get("sop_instance_uid", frozenset()) - intake.arrived
    if missing and arrived:
        outcome.incomplete(f"{len(missing)} of the instances asked for did not arrive")
    if intake.damaged:
        outcome.incomplete(f"{intake.damaged} received files were damaged and are in quarantine")
    if intake.put_aside and not arrived and outcome.complete:
        outcome.incomplete(f"{intake.put_aside.total()} instances arrived, but none that was asked for")
    for reason, count in sorted(intake.put_aside.items()):
        outcome.warnings.append(f"{count} received files put in quarantine: {reason}")
