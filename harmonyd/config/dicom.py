"""Options of the ``dicom`` service: the SCP half (endpoint) and the SCU half (backend).

A key of the other half is a mistake, not a guess at what was meant; options whose effect is not there are refused.
"""

from __future__ import annotations

from pathlib import Path

from harmonyd.config import checks
from harmonyd.config.fields import NOT_BUILT, Section
from harmonyd.config.model import DicomBackendOptions, DicomEndpointOptions

_MAX_PDU = (4096, 131072)
"""The range DCMTK accepts (--max-pdu)."""
_ENDPOINT_ONLY = ("bind_addr", "allowed_calling_aets", "transfer_syntaxes")
_BACKEND_ONLY = (
    *("aet", "host", "use_tls", "engine", "persistent_store_scp", "incoming_store_port", "move_destination_aet"),
    *("dimse_retrieve_mode", "connect_timeout_ms", "association_timeout_ms", "operation_timeout_ms"),
    *("max_queue", "max_results", "query_model"),
)
PER_ASSOCIATION = f'store_scp = "per-association", which can, is {NOT_BUILT}'


def endpoint_options(section: Section, base: Path) -> DicomEndpointOptions:
    """An SCP. ``base`` is the folder of config.toml."""
    for key in _BACKEND_ONLY:
        section.refuse(key, "a key of a dicom backend (SCU), not of a dicom endpoint (SCP)", _move_to("backends"))
    _refuse_endpoint_keys(section)
    options = DicomEndpointOptions(
        local_aet=section.text("local_aet", "HARMONY_SCP", checks.ae_title),
        bind_addr=section.text("bind_addr", "0.0.0.0", bind_address),
        port=section.port("port", 11112),
        max_pdu=section.integer("max_pdu", 65536, *_MAX_PDU),
        store_scp=section.choice("store_scp", "persistent", ["persistent"], not_built=["per-association"]),
        storage_dir=_storage_dir(section, base),
    )
    section.finish()
    return options


def bind_address(value: str) -> str | None:
    """storescp listens on all addresses and has no option for another (DCMTK 3.6.7)."""
    if not checks.is_ip_address(value):
        return "not an IPv4 or IPv6 address"
    return None if value == "0.0.0.0" else f"storescp always listens on 0.0.0.0; {PER_ASSOCIATION}"


def _refuse_endpoint_keys(section: Section) -> None:
    if section.strings("allowed_calling_aets", checks.ae_title):
        what = f"storescp takes every caller; {PER_ASSOCIATION}"
        section.problem("allowed_calling_aets", what, "remove the key, or leave the list empty to allow any")
    section.refuse("max_associations", f"storescp cannot limit them; {PER_ASSOCIATION}")
    section.refuse("transfer_syntaxes", NOT_BUILT)
    section.refuse("tls", f"secure associations are {NOT_BUILT}")


def backend_options(section: Section, base: Path) -> DicomBackendOptions:
    """An SCU. ``base`` is the folder of config.toml."""
    for key in _ENDPOINT_ONLY:
        section.refuse(key, "a key of a dicom endpoint (SCP), not of a dicom backend (SCU)", _move_to("endpoints"))
    _refuse_tls(section)
    section.require("aet", "host", "port")
    local_aet = section.text("local_aet", "HARMONY_SCU", checks.ae_title)
    options = DicomBackendOptions(
        aet=section.text("aet", "", checks.ae_title),
        host=section.text("host", "", checks.host),
        port=section.port("port", 0),
        local_aet=local_aet,
        engine=section.choice("engine", "dcmtk", ["dcmtk"], not_built=["native"]),
        store_scp=_store_scp(section),
        incoming_store_port=section.port("incoming_store_port", 11123),
        incoming_store_port_set="incoming_store_port" in section,
        move_destination_aet=section.text("move_destination_aet", local_aet, checks.ae_title),
        dimse_retrieve_mode=section.choice("dimse_retrieve_mode", "get", ["get", "move"]),
        connect_timeout_secs=section.milliseconds("connect_timeout_ms", 30.0),
        association_timeout_secs=section.milliseconds("association_timeout_ms", 300.0),
        operation_timeout_secs=section.milliseconds("operation_timeout_ms", 3600.0),
        max_pdu=section.integer("max_pdu", 65536, *_MAX_PDU),
        max_associations=section.integer("max_associations", 10, 1, 1000),
        max_queue=section.integer("max_queue", 100, 0, 100_000),
        max_results=section.integer("max_results", 10000, 1, 10_000_000),
        query_model=section.choice("query_model", "", ["study", "patient"]) or None,
        storage_dir=_storage_dir(section, base),
    )
    section.finish()
    return options


def _refuse_tls(section: Section) -> None:
    if section.flag("use_tls", False):
        section.problem("use_tls", f"secure associations are {NOT_BUILT}", "set it to false, or remove the key")
    section.refuse("tls", f"secure associations are {NOT_BUILT}")


def _store_scp(section: Section) -> str:
    """``store_scp``, or Harmony's spelling ``persistent_store_scp``; both may be given when they agree."""
    mode = section.choice("store_scp", "persistent", ["persistent", "transient"], not_built=["per-association"])
    if "persistent_store_scp" not in section:
        section.raw("persistent_store_scp")
        return mode
    spelled = "persistent" if section.flag("persistent_store_scp", True) else "transient"
    if "store_scp" in section and section.sound and spelled != mode:
        section.problem("persistent_store_scp", f'contradicts store_scp = "{mode}"', "remove one of the two")
    return spelled


def _storage_dir(section: Section, base: Path) -> Path | None:
    folder = section.text("storage_dir", "", checks.path)
    return (base / folder).resolve() if folder else None


def _move_to(where: str) -> str:
    return f"it belongs in [{where}.NAME.options]"
