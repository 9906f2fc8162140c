"""Writes the corpus: PDUs that contradict themselves or the state they come in, built with scapy.

Each file is hexadecimal text behind a line that says what is wrong; "* 7" behind a line: seven times. Run ``python
make_corpus.py`` after a change here; what was found elsewhere (by hypothesis, at a peer) is added by hand, in a file of
its own.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from scapy.contrib.dicom import (
    A_ABORT,
    A_ASSOCIATE_AC,
    A_ASSOCIATE_RJ,
    A_ASSOCIATE_RQ,
    A_RELEASE_RP,
    C_ECHO_RQ,
    DICOM,
    P_DATA_TF,
    DICOMApplicationContext,
    DICOMUserIdentity,
    DICOMVariableItem,
    PresentationDataValueItem,
    build_presentation_context_rq,
    build_user_information,
)

FOLDER = Path(__file__).parent
VERIFICATION, IMPLICIT = "1.2.840.10008.1.1", "1.2.840.10008.1.2"


def _request(*items: object) -> bytes:
    application = DICOMVariableItem() / DICOMApplicationContext()
    context = build_presentation_context_rq(1, VERIFICATION, [IMPLICIT])
    items = items or (context, build_user_information())
    return bytes(DICOM() / A_ASSOCIATE_RQ(variable_items=[application, *items]))


def _pdvs(*pdvs: PresentationDataValueItem) -> bytes:
    return bytes(DICOM() / P_DATA_TF(pdv_items=list(pdvs)))


def _pdv(data: bytes, **fields: int) -> PresentationDataValueItem:
    return PresentationDataValueItem(**{"context_id": 1, "is_command": 1, "is_last": 1, **fields}, data=data)


def _element(element: int, value: bytes) -> bytes:
    return struct.pack("<HHI", 0, element, len(value)) + value


def _number(element: int, value: int) -> bytes:
    return _element(element, struct.pack("<H", value))


def _uid(value: str) -> bytes:
    return value.encode() + b"\0" * (len(value) % 2)


def _at(content: bytes, offset: int, replacement: bytes) -> bytes:
    return content[:offset] + replacement + content[offset + len(replacement) :]


def entries() -> Iterator[tuple[str, str, bytes]]:
    """Name, what is wrong, and the bytes."""
    context, asked = build_presentation_context_rq(1, VERIFICATION, [IMPLICIT]), _request()
    echo = bytes(C_ECHO_RQ(message_id=1))
    yield "rq-length-short", "the length of the request ends inside its items", _at(asked, 2, b"\0\0\0\x60")
    yield "rq-length-huge", "the length of the request is 4 GiB - 1", _at(asked, 2, b"\xff\xff\xff\xff")
    yield "rq-length-zero", "a request of no bytes", b"\x01\0\0\0\0\0"
    yield "rq-item-too-long", "an item that ends behind the request", _at(asked, 76, b"\xff\xff")
    yield "rq-twice", "a second request", asked + asked
    yield "rq-same-context-id", "two contexts with one id", _request(context, context, build_user_information())
    even = build_presentation_context_rq(2, VERIFICATION, [IMPLICIT])
    yield "rq-even-context-id", "a context id that is even", _request(even, build_user_information())
    yield "rq-no-user-information", "a request without User Information", _request(context)
    many = [build_presentation_context_rq(1 + 2 * n, VERIFICATION, [IMPLICIT] * 3) for n in range(128)]
    yield "rq-many", "128 contexts, which is all the ids there are", _request(*many, build_user_information())
    identity = bytes(DICOMVariableItem(item_type=0x58) / DICOMUserIdentity(primary_field=b"x" * 9))
    cut = DICOMVariableItem(item_type=0x50, length=4) / identity
    yield "rq-identity-cut", "a User Identity that ends behind its item", _request(context, cut)
    yield "ac-unasked", "an acceptance by who was asked nothing", bytes(DICOM() / A_ASSOCIATE_AC())
    yield (
        "rj-unknown-reason",
        "a rejection with a reason that does not exist",
        bytes(DICOM() / A_ASSOCIATE_RJ(result=9, source=9, reason_diag=99)),
    )
    yield (
        "abort-unknown-reason",
        "an abort with a reason that does not exist",
        bytes(DICOM() / A_ABORT(source=77, reason_diag=99)),
    )
    yield "abort-cut", "an abort of two bytes", b"\x07\0\0\0\0\x02\0\0"
    yield "release-rp-first", "the answer to a release that nobody asked for", bytes(DICOM() / A_RELEASE_RP())
    yield "unknown-type", "a PDU of a type that does not exist", b"\x42\0\0\0\0\x04\0\0\0\0"
    yield "pdv-none", "P-DATA-TF with nothing in it", b"\x04\0\0\0\0\0"
    yield "pdv-length-zero", "a PDV of no length", b"\x04\0\0\0\0\x04\0\0\0\0"
    yield "pdv-length-one", "a PDV without its header", b"\x04\0\0\0\0\x05\0\0\0\x01\x01"
    yield "pdv-too-long", "a PDV that ends behind its PDU", _at(_pdvs(_pdv(echo)), 6, b"\0\0\xff\xff")
    yield "pdv-wrong-context", "a command in a context that was not accepted", _pdvs(_pdv(echo, context_id=99))
    yield "pdv-data-first", "a data set before its command", _pdvs(_pdv(b"x" * 20, is_command=0))
    yield "pdv-reserved-bits", "a command with reserved bits set", _pdvs(_pdv(echo, reserved_bits=63))
    yield (
        "command-in-two-contexts",
        "a command of which each half has a context of its own",
        _pdvs(_pdv(echo[:20], is_last=0), _pdv(echo[20:], context_id=3)),
    )
    yield "command-empty", "a command set of no bytes", _pdvs(_pdv(b""))
    yield "command-without-end", "a command that never ends", _pdvs(*[_pdv(b"\0" * 16000, is_last=0)]) * 8
    yield "command-element-too-long", "an element that ends behind the command", _pdvs(_pdv(_at(echo, 4, b"\xff" * 4)))
    yield "command-no-field", "a command set that does not say which", _pdvs(_pdv(b"\0\0\x10\x01\x02\0\0\0\x01\0"))
    push_model, step = _uid("1.2.840.10008.1.20.1"), _uid("1.2.840.10008.3.1.2.3.3")
    yield (
        "n-action-without-message-id",
        "an N-ACTION-RQ that cannot be answered",
        _pdvs(_pdv(_element(3, push_model) + _number(0x100, 0x130) + _number(0x800, 1) + _number(0x1008, 1))),
    )
    event = _element(2, push_model) + _number(0x100, 0x100) + _number(0x110, 1) + _number(0x800, 0x101)
    yield (
        "n-event-long-type",
        "an N-EVENT-REPORT-RQ whose Event Type ID has four bytes",
        _pdvs(_pdv(event + _element(0x1002, b"\1\0\0\0"))),
    )
    yield (
        "n-set-without-data",
        "an N-SET-RQ that no data set follows",
        _pdvs(_pdv(_element(3, step) + _number(0x100, 0x120) + _number(0x110, 1) + _number(0x800, 0x101))),
    )
    yield (
        "command-unknown",
        "a command that does not exist",
        _pdvs(_pdv(b"\0\0\0\x01\x02\0\0\0\x99\x99\0\0\x10\x01\x02\0\0\0\x01\0\0\0\0\x08\x02\0\0\0\x01\x01")),
    )
    yield (
        "echo-with-data-after",
        "a data set behind a command that announces none",
        _pdvs(_pdv(echo), _pdv(b"x" * 40, is_command=0)),
    )


if __name__ == "__main__":
    for name, wrong, content in entries():
        lines = [content[at : at + 40].hex() for at in range(0, len(content), 40)]
        counted = [(line, len(list(same))) for line, same in groupby(lines)]
        texts = [line if count == 1 else f"{line} * {count}" for line, count in counted]
        (FOLDER / f"{name}.hex").write_text("\n".join([f"# {wrong}", *texts, ""]))
