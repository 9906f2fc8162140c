"""What the end-to-end tests of Storage Commitment share: modalities that store and ask, and what they are told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from queue import Queue
from typing import Any

from pydicom import Dataset, dcmread
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import generate_uid
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.sop_class import CTImageStorage

from harmonyd.testing.peer_managed import PUSH_MODEL, PUSH_MODEL_INSTANCE

SUCCESS, PROCESSING_FAILURE, NO_SUCH_INSTANCE = 0x0000, 0x0110, 0x0112
MODALITY = "MODALITY"


class Modality:
    """Stores, and asks for commitment over one association; ``told`` has the reports that came over it."""

    def __init__(self, aet: str, port: int, *, calling: str = MODALITY) -> None:
        self.told: Queue[tuple[int, Dataset]] = Queue()
        node = AE(ae_title=calling)
        node.acse_timeout = node.dimse_timeout = node.network_timeout = 20
        for uid in (PUSH_MODEL, CTImageStorage):
            node.add_requested_context(uid)
        heard = [(evt.EVT_N_EVENT_REPORT, self._heard)]
        self.assoc: Association = node.associate("127.0.0.1", port, ae_title=aet, evt_handlers=heard)
        assert self.assoc.is_established

    def _heard(self, event: Any) -> tuple[int, None]:
        self.told.put((event.event_type, event.event_information))
        return SUCCESS, None

    def store(self, files: Sequence[Path]) -> None:
        """All must be taken."""
        for path in files:
            assert self.assoc.send_c_store(dcmread(path)).Status == SUCCESS

    def ask(self, files: Sequence[Path], *more: str, uid: str | None = None) -> tuple[int, str]:
        """N-ACTION about these files, and ``more`` SOP Instance UIDs; the status, and the Transaction UID."""
        ds = Dataset()
        ds.TransactionUID = uid or generate_uid()
        uids = [str(dcmread(path, stop_before_pixels=True).SOPInstanceUID) for path in files]
        ds.ReferencedSOPSequence = DicomSequence([_item(each) for each in (*uids, *more)])
        status, _ = self.assoc.send_n_action(ds, 1, PUSH_MODEL, PUSH_MODEL_INSTANCE)
        return status.Status, str(ds.TransactionUID)

    def release(self) -> None:
        self.assoc.release()


def _item(uid: str) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = CTImageStorage, uid
    return item


def committed(report: Dataset) -> set[str]:
    return {str(item.ReferencedSOPInstanceUID) for item in report.get("ReferencedSOPSequence", [])}


def failed(report: Dataset) -> Mapping[str, int]:
    return {
        str(item.ReferencedSOPInstanceUID): item.FailureReason for item in report.get("FailedSOPSequence", [])
    }
