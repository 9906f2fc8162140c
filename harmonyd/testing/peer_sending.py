"""How the scripted peer sends objects to where pynetdicom's ``send_c_store`` alone would not do."""

from __future__ import annotations

import time
from io import BytesIO
from typing import Any

from pydicom import Dataset
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dsutils import encode


def let_reader_go_on(association: Any) -> None:
    """Before the next request: pynetdicom's own reader, paused for the last one, would take the answer to this one."""
    while association._is_paused and association.is_established:
        time.sleep(0.001)


def send_broken(association: Any, instance: Dataset, how: str) -> None:
    """Send an instance as ``PeerOptions.broken`` says."""
    context = next(each for each in association.accepted_contexts if each.abstract_syntax == instance.SOPClassUID)
    syntax = context.transfer_syntax[0]
    data = encode(instance, syntax.is_implicit_VR, syntax.is_little_endian, syntax.is_deflated) or b""
    request = C_STORE()
    request.MessageID, request.Priority = 1, 2
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = instance.SOPClassUID, instance.SOPInstanceUID
    if how == "short":
        request.DataSet = BytesIO(data[: len(data) // 4 * 2])
        _exchange(association, request, context.context_id)
        return
    request.DataSet = BytesIO(data)
    message: Any = C_STORE_RQ()
    message.primitive_to_message(request)
    pdus = list(message.encode_msg(context.context_id, 256))
    for pdu in pdus[: len(pdus) // 2]:
        association.dul.send_pdu(pdu)
    association.abort()


def _exchange(association: Any, request: Any, context_id: int) -> None:
    """Send a request and wait for its response, as ``send_c_store`` does: pynetdicom's own reader has to be paused."""
    let_reader_go_on(association)
    association._reactor_checkpoint.clear()
    while not association._is_paused:
        time.sleep(0.001)
    association.dimse.send_msg(request, context_id)
    association.dimse.get_msg(block=True)
    association._reactor_checkpoint.set()
