"""``services`` of a dicom endpoint: what callers may do beside C-ECHO; and where their C-MOVEs may send to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from harmonyd.config import checks, tls
from harmonyd.config.asking import COMMIT, SERVICES, STORE, MoveDestination
from harmonyd.config.errors import listing, nearest
from harmonyd.config.fields import Section, shown

MOVE = "move"


def services(section: Section, *, is_native: bool) -> tuple[str, ...]:
    """In the order of ``SERVICES``. ``is_native``: the engine offers more than "store"."""
    given = section.strings("services")
    for name in given:
        if name not in SERVICES:
            what = f"{shown(name)} is no service of an endpoint"
            section.problem("services", what, f"allowed: {listing(SERVICES)}", nearest(name, SERVICES))
    if "services" in section and section.raw("services") == []:
        section.problem("services", "nothing is offered", f"allowed: {listing(SERVICES)}")
    found = tuple(name for name in SERVICES if name in given) or (STORE,)
    if not is_native and found != (STORE,):
        what = "the dcmtk engine receives, and answers no questions"
        section.problem("services", what, 'set engine = "native", which does')
        return (STORE,)
    if MOVE in found and "move_destinations" not in section:
        section.warn("services", "no move_destinations: every C-MOVE is answered that its destination is unknown")
    elif COMMIT in found and "move_destinations" not in section:
        what = "no move_destinations: who asks for a commitment is told only while its own association is open"
        section.warn("services", what)
    elif MOVE not in found and COMMIT not in found and "move_destinations" in section:
        section.warn("move_destinations", 'it has no effect without "move" or "commit" in services')
    return found


def destinations(section: Section, base: Path) -> Mapping[str, MoveDestination]:
    """``move_destinations``, by AE title. ``base`` is the folder of config.toml."""
    table = section.table("move_destinations")
    for aet in table:
        complaint = checks.ae_title(aet)
        if complaint:
            table.problem(aet, complaint, "an AE title is the key of each destination")
    return {aet: _destination(destination, base) for aet, destination in table.tables().items()}


def _destination(section: Section, base: Path) -> MoveDestination:
    if section.is_table:
        section.require("host", "port")
    defaults = MoveDestination("", 0)
    result = MoveDestination(
        host=section.text("host", "", checks.host),
        port=section.port("port", 0),
        tls=tls.client(section.table("tls"), base) if "tls" in section else None,
        connect_timeout_secs=section.milliseconds("connect_timeout_ms", defaults.connect_timeout_secs),
        association_timeout_secs=section.milliseconds("association_timeout_ms", defaults.association_timeout_secs),
        max_associations=section.integer("max_associations", defaults.max_associations, 1, 1000),
    )
    section.raw("tls")
    section.finish()
    return result
