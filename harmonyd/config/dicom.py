"""Options of the ``dicom`` service: the SCP half (endpoint) and the SCU half (backend).

A key of the other half is a mistake, not a guess at what was meant; options whose effect is not there are refused.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from harmonyd.config import acknowledge, checks, committing, guarding, identity, offered, tls
from harmonyd.config.fields import NOT_BUILT, Section
from harmonyd.config.model import DicomBackendOptions, DicomEndpointOptions
from harmonyd.identity import Credentials
from harmonyd.tls import TlsClient, TlsServer

_MAX_PDU = (4096, 131072)
"""The range DCMTK accepts (--max-pdu)."""
_ENDPOINT_ONLY = (
    *("bind_addr", "allowed_calling_aets", "max_associations_per_peer", "in_order", "transfer_syntaxes"),
    *("acknowledge", "acknowledge_timeout_ms", "acknowledge_status", "services", "move_destinations"),
    *committing.ENDPOINT_KEYS,
)
_BACKEND_ONLY = (
    *("aet", "host", "persistent_store_scp", "incoming_store_port", "incoming_store_tls", "move_destination_aet"),
    *("dimse_retrieve_mode", "connect_timeout_ms", "operation_timeout_ms"),
    *("max_queue", "max_results", "query_model", "association_idle_ms"),
    *guarding.KEYS,
    *committing.BACKEND_KEYS,
)
PERSISTENT, PER_ASSOCIATION, TRANSIENT = "persistent", "per-association", "transient"
DCMTK, NATIVE = "dcmtk", "native"
"""Engines; the second is also what ``store_scp`` is called where the native engine receives: it has one way to."""
ANY_ADDRESS = "0.0.0.0"
_PLAIN = f"a storescp listens on {ANY_ADDRESS} by itself, without TLS"
_CANNOT = {
    "tls": _PLAIN,
    "bind_addr": f"a persistent storescp always listens on {ANY_ADDRESS}",
    "allowed_calling_aets": "a persistent storescp takes every caller",
    "max_associations": "a persistent storescp serves one association after the other",
    "max_associations_per_peer": "a persistent storescp serves one association after the other",
}


def endpoint_options(section: Section, base: Path) -> DicomEndpointOptions:
    """An SCP. ``base`` is the folder of config.toml."""
    for key in _BACKEND_ONLY:
        section.refuse(key, "a key of a dicom backend (SCU), not of a dicom endpoint (SCP)", _move_to("backends"))
    section.refuse("transfer_syntaxes", NOT_BUILT)
    section.refuse("use_tls", "a key of a dicom backend", "an endpoint speaks TLS, and nothing else, with a table tls")
    engine = _engine(section)
    options = DicomEndpointOptions(
        local_aet=section.text("local_aet", "HARMONY_SCP", checks.ae_title),
        bind_addr=section.text("bind_addr", ANY_ADDRESS, checks.ip_address),
        port=section.port("port", 11112),
        max_pdu=section.integer("max_pdu", 65536, *_MAX_PDU),
        engine=engine,
        store_scp=section.choice("store_scp", PERSISTENT, [PERSISTENT, PER_ASSOCIATION]),
        allowed_calling_aets=section.strings("allowed_calling_aets", checks.ae_title),
        max_associations=section.integer("max_associations", 50, 1, 200),
        max_associations_per_peer=section.integer("max_associations_per_peer", 20, 1, 200),
        association_timeout_secs=section.milliseconds("association_timeout_ms", 300.0),
        in_order=section.flag("in_order", False),
        acknowledge=acknowledge.answers(section, can_wait=engine == NATIVE),
        tls=_server_tls(section, "tls", base),
        storage_dir=_storage_dir(section, base),
        services=offered.services(section, is_native=engine == NATIVE),
        move_destinations=offered.destinations(section, base),
        **committing.endpoint_options(section),
    )
    section.finish()
    return settle_receiver(section, options)


def settle_receiver(section: Section, options: DicomEndpointOptions) -> DicomEndpointOptions:
    """Choose ``store_scp`` where the file leaves it open; note a mistake where it names one that cannot do the rest."""
    if options.engine == NATIVE:
        _warn_about_modes(section)
        return replace(options, store_scp=NATIVE)
    needs = {
        "tls": options.tls is not None,
        "bind_addr": options.bind_addr != ANY_ADDRESS,
        "allowed_calling_aets": bool(options.allowed_calling_aets),
        "max_associations": "max_associations" in section,
        "max_associations_per_peer": "max_associations_per_peer" in section,
    }
    needed = [key for key, is_needed in needs.items() if is_needed]
    if not needed or options.store_scp == PER_ASSOCIATION:
        return options
    if "store_scp" not in section:
        section.warn("store_scp", f'"{PER_ASSOCIATION}" was chosen: {", ".join(needed)} needs it')
        return replace(options, store_scp=PER_ASSOCIATION)
    for key in needed:
        section.problem(key, _CANNOT[key], f'set store_scp = "{PER_ASSOCIATION}", which can, or leave it out')
    return options


def backend_options(section: Section, base: Path) -> DicomBackendOptions:
    """An SCU. ``base`` is the folder of config.toml."""
    for key in _ENDPOINT_ONLY:
        section.refuse(key, "a key of a dicom endpoint (SCP), not of a dicom backend (SCU)", _move_to("endpoints"))
    section.require("aet", "host", "port")
    local_aet = section.text("local_aet", "HARMONY_SCU", checks.ae_title)
    engine = _engine(section)
    options = DicomBackendOptions(
        aet=section.text("aet", "", checks.ae_title),
        host=section.text("host", "", checks.host),
        port=section.port("port", 0),
        local_aet=local_aet,
        engine=engine,
        store_scp=_store_scp(section),
        incoming_store_port=section.port("incoming_store_port", 11123),
        incoming_store_port_set="incoming_store_port" in section,
        incoming_store_tls=_server_tls(section, "incoming_store_tls", base),
        move_destination_aet=section.text("move_destination_aet", local_aet, checks.ae_title),
        dimse_retrieve_mode=section.choice("dimse_retrieve_mode", "get", ["get", "move"]),
        connect_timeout_secs=section.milliseconds("connect_timeout_ms", 30.0),
        association_timeout_secs=section.milliseconds("association_timeout_ms", 300.0),
        operation_timeout_secs=section.milliseconds("operation_timeout_ms", 3600.0),
        max_pdu=section.integer("max_pdu", 65536, *_MAX_PDU),
        max_associations=section.integer("max_associations", 10, 1, 1000),
        max_queue=section.integer("max_queue", 100, 0, 100_000),
        association_idle_secs=section.milliseconds("association_idle_ms", 5.0, least=0),
        max_results=section.integer("max_results", 10000, 1, 10_000_000),
        query_model=section.choice("query_model", "", ["study", "patient"]) or None,
        storage_dir=_storage_dir(section, base),
        tls=_tls(section, base),
        user_identity=_user_identity(section, engine, base),
        **guarding.options(section),
        **committing.backend_options(section, is_native=engine == NATIVE),
    )
    section.finish()
    if options.engine == NATIVE:
        _warn_about_modes(section)
        return replace(options, store_scp=NATIVE)
    return _settle_delivery(section, options)


def _settle_delivery(section: Section, options: DicomBackendOptions) -> DicomBackendOptions:
    """As ``settle_receiver``, for what a C-MOVE delivers."""
    if options.incoming_store_tls is None or options.store_scp == PER_ASSOCIATION:
        return options
    if "store_scp" in section or "persistent_store_scp" in section:
        remedy = f'set store_scp = "{PER_ASSOCIATION}", where harmonyd listens, or leave it out'
        section.problem("incoming_store_tls", _PLAIN.replace("storescp", "storescp (or movescu)"), remedy)
        return options
    section.warn("store_scp", f'"{PER_ASSOCIATION}" was chosen: incoming_store_tls needs it')
    return replace(options, store_scp=PER_ASSOCIATION)


def _engine(section: Section) -> str:
    return section.choice("engine", DCMTK, [DCMTK, NATIVE])


def _warn_about_modes(section: Section) -> None:
    for key in ("store_scp", "persistent_store_scp"):
        if key in section:
            section.warn(key, "it has no effect: the native engine receives by itself, in one way that can all")


def _tls(section: Section, base: Path) -> TlsClient | None:
    """``use_tls`` and ``tls``. The table alone changes nothing: it may stay while its use is switched off."""
    if section.flag("use_tls", False):
        return tls.client(section.table("tls"), base)
    section.raw("tls")
    if "tls" in section:
        section.warn("tls", "it has no effect without use_tls = true")
    return None


def _user_identity(section: Section, engine: str, base: Path) -> Credentials | None:
    if section.raw("user_identity") is None:
        return None
    if engine == NATIVE:
        return identity.credentials(section.table("user_identity"), base)
    section.problem("user_identity", "the dcmtk engine tells none", f'set engine = "{NATIVE}", which does')
    return None


def _server_tls(section: Section, key: str, base: Path) -> TlsServer | None:
    """A table that is there counts: a port that was to be secured is never open without."""
    if key not in section:
        section.raw(key)
        return None
    return tls.server(section.table(key), base)


def _store_scp(section: Section) -> str:
    """``store_scp``, or Harmony's spelling ``persistent_store_scp``; both may be given when they agree."""
    mode = section.choice("store_scp", PERSISTENT, [PERSISTENT, PER_ASSOCIATION, TRANSIENT])
    if "persistent_store_scp" not in section:
        section.raw("persistent_store_scp")
        return mode
    spelled = PERSISTENT if section.flag("persistent_store_scp", True) else TRANSIENT
    if "store_scp" in section and section.sound and spelled != mode:
        section.problem("persistent_store_scp", f'contradicts store_scp = "{mode}"', "remove one of the two")
    return spelled


def _storage_dir(section: Section, base: Path) -> Path | None:
    folder = section.text("storage_dir", "", checks.path)
    return (base / folder).resolve() if folder else None


def _move_to(where: str) -> str:
    return f"it belongs in [{where}.NAME.options]"
