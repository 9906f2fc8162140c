"""Storing instances (STOW-RS, PS3.18 section 10.5): one C-STORE each over one association, and what came of each."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

from harmonyd.dimse.status import StatusCategory, category
from harmonyd.services.base import HttpAnswer
from harmonyd.services.dicom.storing_each import EACH, STUDY
from harmonyd.services.dicomweb.accept import DICOM_JSON, DICOM_XML, JSON, Offer, accepted, choose
from harmonyd.services.dicomweb.entities import json_key
from harmonyd.services.dicomweb.exchange import Exchange
from harmonyd.services.dicomweb.native_xml import to_xml
from harmonyd.services.dicomweb.resources import path_of
from harmonyd.services.dicomweb.results import headers

OFFERS = (Offer(DICOM_JSON), Offer(JSON), Offer(DICOM_XML))
_PROCESSING_FAILURE = 0x0110
"""Failure Reason of what was not answered (PS3.7 section C.5.13)."""


async def answer(exchange: Exchange) -> HttpAnswer:
    """Store what the body holds: 200 when all is stored, 202 when some is or with a warning, 409 when nothing is.

    Raises ``UnsupportedMediaType``, ``BadRequest`` for a body that is not well formed, and what the operation raises
    where not a single instance was answered.
    """
    offer = choose(accepted(exchange.request), OFFERS)
    study = exchange.resource.study
    results = await exchange.asker.store(exchange.request.body, {EACH: "true", **({STUDY: study} if study else {})})
    try:
        outcomes = [json.loads(await record.json()) async for record in results]
    finally:
        await results.aclose()
    status, response = store_response(outcomes, study, exchange.base_url)
    data = to_xml(response) if offer.essence == DICOM_XML else json.dumps(response).encode()
    return HttpAnswer(status, headers(offer.essence), _one(data), len(data))


async def _one(data: bytes) -> AsyncGenerator[bytes, None]:
    yield data


def store_response(outcomes: Sequence[Mapping[str, Any]], study: str, base_url: str) -> tuple[int, dict[str, Any]]:
    """Return status and Store Instances Response (PS3.18 section 10.5.3 and table I.2-1) in the DICOM JSON Model."""
    referenced, failed, other = [], [], []
    warned = False
    for outcome in outcomes:
        status = None if outcome["status"] is None else int(outcome["status"], 16)
        kind = None if status is None else category(status)
        if kind in (StatusCategory.SUCCESS, StatusCategory.WARNING):
            warned = warned or kind is StatusCategory.WARNING
            referenced.append(_referenced(outcome, base_url, status if kind is StatusCategory.WARNING else None))
        elif outcome["sop_class_uid"] and outcome["sop_instance_uid"]:
            failed.append(_instance(outcome) | _element("FailureReason", "US", status or _PROCESSING_FAILURE))
        else:
            other.append(_element("FailureReason", "US", status or _PROCESSING_FAILURE))
    response = _study_url(outcomes, study, base_url)
    sequences = {"ReferencedSOPSequence": referenced, "FailedSOPSequence": failed, "OtherFailuresSequence": other}
    for keyword, items in sequences.items():
        if items:
            response[json_key(keyword)] = {"vr": "SQ", "Value": items}
    whole = not failed and not other and not warned
    return 200 if whole else 202 if referenced else 409, response


def _study_url(outcomes: Sequence[Mapping[str, Any]], study: str, base_url: str) -> dict[str, Any]:
    """RetrieveURL of the study, where all belong to one."""
    studies = {study} if study else {outcome.get("study_instance_uid", "") for outcome in outcomes}
    named = studies.pop() if len(studies) == 1 else ""
    return _element("RetrieveURL", "UR", base_url + path_of(named)) if named else {}


def _instance(outcome: Mapping[str, Any]) -> dict[str, Any]:
    return _element("ReferencedSOPClassUID", "UI", outcome["sop_class_uid"]) | _element(
        "ReferencedSOPInstanceUID", "UI", outcome["sop_instance_uid"]
    )


def _referenced(outcome: Mapping[str, Any], base_url: str, warning: int | None) -> dict[str, Any]:
    item = _instance(outcome)
    study, series = outcome.get("study_instance_uid"), outcome.get("series_instance_uid")
    if study and series:
        item |= _element("RetrieveURL", "UR", base_url + path_of(study, series, outcome["sop_instance_uid"]))
    return item if warning is None else item | _element("WarningReason", "US", warning)


def _element(keyword: str, vr: str, value: Any) -> dict[str, Any]:
    return {json_key(keyword): {"vr": vr, "Value": [value]}}
