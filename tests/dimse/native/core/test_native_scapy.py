"""The core against scapy's layer for DICOM: what it builds, what it reads of ours, and what it makes up; the corpus."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from any_input_kit import MAKERS, hear, single_bytes
from hypothesis import given, settings
from hypothesis import strategies as st
from native_kit import Pair
from native_strategies import requests
from scapy.contrib import dicom
from scapy.packet import Packet, Raw, fuzz

from harmonyd.dimse.native.core import (
    Aborted,
    AssociateRequest,
    Association,
    CommandField,
    CommandReceived,
    Requested,
)

CORPUS = sorted((Path(__file__).parent / "corpus").glob("*.hex"))
PDUS: list[type[Packet]] = [
    dicom.A_ASSOCIATE_RQ, dicom.A_ASSOCIATE_AC, dicom.A_ASSOCIATE_RJ, dicom.P_DATA_TF,
    dicom.A_RELEASE_RQ, dicom.A_RELEASE_RP, dicom.A_ABORT, Raw,
]  # fmt: skip
COMMANDS: list[type[Packet]] = [
    dicom.C_ECHO_RQ, dicom.C_ECHO_RSP, dicom.C_STORE_RQ, dicom.C_STORE_RSP, dicom.C_FIND_RQ, dicom.C_FIND_RSP,
    dicom.C_GET_RQ, dicom.C_GET_RSP, dicom.C_MOVE_RQ, dicom.C_MOVE_RSP,
]  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(requests())
def test_scapy_reads_what_we_ask_for(asked: AssociateRequest) -> None:
    """The same titles and contexts, and the same bytes when it writes them again."""
    content = asked.encode()
    read = dicom.DICOM(content)
    assert bytes(read) == content
    assert read[dicom.A_ASSOCIATE_RQ].called_ae_title.decode("latin-1").strip() == asked.called_aet.strip()
    proposed = [
        item[dicom.DICOMPresentationContextRQ].context_id
        for item in read[dicom.A_ASSOCIATE_RQ].variable_items
        if dicom.DICOMPresentationContextRQ in item
    ]
    assert proposed == [context.id for context in asked.contexts]


def test_scapy_asks_and_echoes() -> None:
    """An association and a C-ECHO as scapy builds them."""
    context = dicom.build_presentation_context_rq(1, "1.2.840.10008.1.1", ["1.2.840.10008.1.2"])
    association = Association.acceptor(16384)
    application = dicom.DICOMVariableItem() / dicom.DICOMApplicationContext()
    items = [application, context, dicom.build_user_information(max_pdu_length=20000)]
    asked = dicom.A_ASSOCIATE_RQ(called_ae_title=b"SCP", calling_ae_title=b"SCAPY", variable_items=items)
    (event,) = association.receive(bytes(dicom.DICOM() / asked))
    assert isinstance(event, Requested)
    request = event.request
    assert (request.called_aet, request.calling_aet) == ("SCP", "SCAPY")
    assert request.user_information.max_pdu == 20000
    association.accept(Pair.answer(request))
    accepted = dicom.DICOM(association.data_to_send())
    assert dicom.A_ASSOCIATE_AC in accepted
    pdv = dicom.PresentationDataValueItem(
        context_id=1, is_command=1, is_last=1, data=bytes(dicom.C_ECHO_RQ(message_id=7))
    )
    (event,) = association.receive(bytes(dicom.DICOM() / dicom.P_DATA_TF(pdv_items=[pdv])))
    assert isinstance(event, CommandReceived)
    assert (event.command.field, event.command.message_id) == (CommandField.C_ECHO_RQ, 7)
    association.send(1, event.command.response(0))
    (answer,) = dicom.DICOM(association.data_to_send())[dicom.P_DATA_TF].pdv_items
    assert dicom.parse_dimse_status(answer.data) == 0


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(list(MAKERS)), st.lists(st.sampled_from(PDUS), min_size=1, max_size=4), st.integers(0, 1 << 32))
def test_what_scapy_makes_up(maker: str, kinds: list[type[Packet]], seed: int) -> None:
    """PDUs with any values in their fields, in any state: the same events however they are cut, and no exception."""
    with random_of_scapy(seed):
        content = b"".join(_made_up(kind) for kind in kinds)
    assert hear(MAKERS[maker](), single_bytes(content)) == hear(MAKERS[maker](), [content])


def _made_up(kind: type[Packet]) -> bytes:
    if kind is not dicom.P_DATA_TF:
        return bytes(dicom.DICOM(pdu_type=random.randrange(10)) / fuzz(kind()))
    command = bytes(fuzz(random.choice(COMMANDS)()))
    at = random.randrange(len(command) + 1)
    parts = [part for part in (command[:at], command[at:]) if part]
    pdvs = [fuzz(dicom.PresentationDataValueItem(context_id=random.choice([1, 3, 5]), data=part)) for part in parts]
    for pdv in pdvs:
        pdv.length = len(pdv.data) + 2
    return bytes(dicom.DICOM() / dicom.P_DATA_TF(pdv_items=pdvs))


@contextmanager
def random_of_scapy(seed: int) -> Iterator[None]:
    """scapy draws from the module ``random``."""
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
@pytest.mark.parametrize("maker", ["waiting acceptor", "acceptor"])
def test_what_is_said_of_it(maker: str, path: Path) -> None:
    """``said.txt`` has it for each file: when it comes first, and when it comes in an association."""
    said = dict(line.split(": ", 1) for line in (CORPUS[0].parent / "said.txt").read_text().splitlines())
    last = MAKERS[maker]().receive(_content(path))[-1]
    told = last.text if isinstance(last, Aborted) else type(last).__name__
    assert told == said[path.stem].split(" | ")[maker == "acceptor"]


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
@pytest.mark.parametrize("maker", MAKERS)
def test_corpus(maker: str, path: Path) -> None:
    """No exception, bounded memory, the same events in one portion and byte by byte; and we go on or abort."""
    content = _content(path)
    assert content
    association = MAKERS[maker]()
    events = hear(association, [content])
    assert hear(MAKERS[maker](), single_bytes(content)) == events
    assert all(event.text for event in events if isinstance(event, Aborted))


def _content(path: Path) -> bytes:
    lines = [line.partition(" * ") for line in path.read_text().splitlines() if not line.startswith("#")]
    return b"".join(bytes.fromhex(text) * int(count or 1) for text, _, count in lines)
