"""The doctor's report on one backend, and a PACS in this process that does what a test says."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pynetdicom import AE, evt
from pynetdicom.sop_class import (
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelMove,
    Verification,
)

from harmonyd.doctor import doctor
from harmonyd.testing.config_files import write_config
from harmonyd.testing.processes import free_port

Steps = dict[str, dict[str, Any]]


class Doctor:
    """Examines one backend, named ``pacs``, whose options a test gives."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self._folder = folder
        self._capsys = capsys
        self.status = -1
        self.document: dict[str, Any] = {}

    def config(self, **options: Any) -> Path:
        given = {
            "aet": "PEER",
            "host": "127.0.0.1",
            "incoming_store_port": free_port(),
            "move_destination_aet": "HARMONY_MOVE",
            "dimse_retrieve_mode": "move",
        }
        return write_config(self._folder / "conf", http_port=free_port(), backends={"pacs": {**given, **options}})

    def examine(self, timeout_secs: float = 30.0, **options: Any) -> Steps:
        """The steps by name; ``status`` and ``document`` are kept."""
        self.status = doctor(self.config(**options), as_json=True, timeout_secs=timeout_secs)
        self.document = json.loads(self._capsys.readouterr().out)
        [backend] = self.document["backends"]
        return {step["step"]: step for step in backend["steps"]}

    def table(self, **options: Any) -> list[str]:
        """The lines that people see."""
        self.status = doctor(self.config(**options), "pacs")
        return self._capsys.readouterr().out.splitlines()


def results(steps: Steps) -> dict[str, str]:
    return {name: step["result"] for name, step in steps.items()}


@contextmanager
def pacs(handlers: list[Any], context: ssl.SSLContext | None = None) -> Iterator[int]:
    """A PACS of pynetdicom's; its port."""
    ae = AE("PEER")
    for uid in (
        Verification,
        StudyRootQueryRetrieveInformationModelFind,
        StudyRootQueryRetrieveInformationModelMove,
    ):
        ae.add_supported_context(uid)
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers, ssl_context=context)
    try:
        yield server.socket.getsockname()[1]
    finally:
        ae.shutdown()


def on_find(answer: Any) -> tuple[Any, Any]:
    """``answer(identifier)``: a generator of (status, data set)."""
    return evt.EVT_C_FIND, lambda event: answer(event.identifier)
