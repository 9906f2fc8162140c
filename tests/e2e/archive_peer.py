"""A PACS of pynetdicom with whatever files it is given: each is sent in its own transfer syntax, mixed as they are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self

import pydicom.data
from pydicom import Dataset, dcmread
from pydicom.uid import ExplicitVRBigEndian
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, QueryRetrievePresentationContexts, StoragePresentationContexts, evt

from harmonyd.testing.processes import free_port

SHIPPED = Path(pydicom.data.__file__).parent / "test_files"
_SYNTAXES = [uid for uid in ALL_TRANSFER_SYNTAXES if uid != ExplicitVRBigEndian]
_UNIQUE = {"STUDY": "StudyInstanceUID", "SERIES": "SeriesInstanceUID", "IMAGE": "SOPInstanceUID"}


def shipped(*names: str, study: str, split: bool = False) -> list[Dataset]:
    """Files of pydicom as instances of one study: several of them claim to be the same instance.

    One series, or one for each SOP class (``split``).
    """
    datasets = [dcmread(SHIPPED / name) for name in names]
    classes = list(dict.fromkeys(ds.SOPClassUID if split else "" for ds in datasets))
    for number, ds in enumerate(datasets, 1):
        _place(ds, study, 1 + classes.index(ds.SOPClassUID if split else ""), number)
    return datasets


def _place(ds: Dataset, study: str, series: int, number: int) -> None:
    ds.StudyInstanceUID = study
    ds.SeriesInstanceUID = f"{study}.{series}"
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"{study}.1.{number}"
    ds.InstanceNumber = number


class ArchivePeer:
    """Answers C-FIND, C-GET and C-STORE. What is stored is in ``stored``; those in ``refused`` are answered 0xA700."""

    aet = "ARCHIVE"

    def __init__(self, datasets: Iterable[Dataset]) -> None:
        self.datasets = list(datasets)
        self.stored: list[Dataset] = []
        self.refused: set[str] = set()
        self.aborts: set[str] = set()
        """SOP Instance UIDs of what it aborts the association at."""
        self.associations = 0
        self.port = free_port()

    @property
    def backend(self) -> dict[str, Any]:
        """Options of a dicom backend that leads here."""
        return {"engine": "native", "aet": self.aet, "host": "127.0.0.1", "port": self.port}

    def __enter__(self) -> Self:
        node = AE(self.aet)
        for context in StoragePresentationContexts:
            node.add_supported_context(str(context.abstract_syntax), _SYNTAXES, scu_role=True, scp_role=True)
        for context in QueryRetrievePresentationContexts:
            node.add_supported_context(str(context.abstract_syntax), _SYNTAXES)
        handlers: list[Any] = [
            (evt.EVT_C_FIND, self._find),
            (evt.EVT_C_GET, self._get),
            (evt.EVT_C_STORE, self._store),
            (evt.EVT_ACCEPTED, self._accepted),
        ]
        self._server = node.start_server(("127.0.0.1", self.port), block=False, evt_handlers=handlers)
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()

    def _accepted(self, _event: Any) -> None:
        self.associations += 1

    def _matches(self, identifier: Dataset) -> list[Dataset]:
        wanted = {key: identifier.get(key) for key in _UNIQUE.values() if identifier.get(key)}
        return [ds for ds in self.datasets if all(ds[key].value == value for key, value in wanted.items())]

    def _find(self, event: Any) -> Iterator[tuple[int, Dataset]]:
        identifier = event.identifier
        unique = _UNIQUE[identifier.QueryRetrieveLevel]
        for ds in {ds[unique].value: ds for ds in reversed(self._matches(identifier))}.values():
            answer = Dataset()
            for element in identifier:
                if element.tag in ds:
                    answer[element.tag] = ds[element.tag]
                else:
                    answer.add_new(element.tag, element.VR, None)
            answer.QueryRetrieveLevel = identifier.QueryRetrieveLevel
            yield 0xFF00, answer

    def _get(self, event: Any) -> Iterator[Any]:
        matches = self._matches(event.identifier)
        yield len(matches)
        for ds in matches:
            yield 0xFF00, ds

    def _store(self, event: Any) -> int:
        ds = event.dataset
        if ds.SOPInstanceUID in self.aborts:
            event.assoc.abort()
            return 0xA700
        if ds.SOPInstanceUID in self.refused:
            return 0xA700
        ds.file_meta = event.file_meta
        self.stored.append(ds)
        return 0x0000
