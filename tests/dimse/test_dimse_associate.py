"""Reading an A-ASSOCIATE-RQ strictly, and the PDUs that refuse one."""

from __future__ import annotations

import struct
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from raw_scu import APPLICATION_CONTEXT, associate_rq, item, pdu

from harmonyd.dimse.associate import (
    MAX_REQUEST_BYTES,
    AssociateRequest,
    NotAnAssociateRequest,
    Rejection,
    abort_pdu,
    printable,
    read_request,
    request_bytes,
)


def test_reads_what_the_caller_says() -> None:
    """Version, AE titles without their padding, and the application context are read."""
    request = read_request(associate_rq(b"  CALLED", b"CALLING", version=3, contexts=128))
    assert request == AssociateRequest(3, "CALLED", "CALLING", APPLICATION_CONTEXT.decode())


@pytest.mark.parametrize(
    "wrong",
    [
        associate_rq()[:-1],
        associate_rq() + b"\0",
        associate_rq(contexts=0),
        associate_rq(contexts=129),
        pdu(4, bytes(100)),
        pdu(1, bytes(67)),
        struct.pack(">BxI", 1, 0xFFFFFFFF),
        struct.pack(">BxI", 1, MAX_REQUEST_BYTES),
        pdu(1, associate_rq()[6:] + b"\x10\0"),
        pdu(1, associate_rq()[6:] + item(0x10, APPLICATION_CONTEXT)),
        pdu(1, associate_rq()[6:] + struct.pack(">BxH", 0x20, 5) + b"1234"),
        b"",
        b"\x01",
    ],
)
def test_refuses_what_is_none(wrong: bytes) -> None:
    """What is cut, too long, of another type, or has items that do not fit, is no A-ASSOCIATE-RQ."""
    with pytest.raises(NotAnAssociateRequest):
        read_request(wrong)


@given(st.binary(max_size=200), st.integers(0, 200))
def test_any_bytes(junk: bytes, at: int) -> None:
    """Whatever stands in a request, reading it gives a request or the one error."""
    good = associate_rq()
    content = (good[:at] + junk + good[at + len(junk) :])[6:]
    for candidate in (junk, pdu(1, content)):
        with suppress(NotAnAssociateRequest):
            assert isinstance(read_request(candidate), AssociateRequest)


def test_size_from_the_header() -> None:
    """The size of the whole PDU is known from its first six bytes."""
    whole = associate_rq(contexts=40)
    assert request_bytes(whole[:6]) == len(whole)


def test_rejections_are_those_of_the_standard() -> None:
    """Each rejection has result, source and reason of PS3.8 table 9-21, where the PDU has them."""
    for rejection in Rejection:
        assert rejection.pdu() == bytes([3, 0, 0, 0, 0, 4, 0, *rejection.value])
        assert rejection.value[0] == (2 if rejection.value[1] == 3 else 1)
    assert "called AE title not recognized" in Rejection.CALLED_AE_TITLE_NOT_RECOGNIZED.text


def test_abort_is_that_of_the_provider() -> None:
    """The A-ABORT comes from the service provider and says that the PDU was not recognized."""
    assert abort_pdu() == bytes([7, 0, 0, 0, 0, 4, 0, 0, 2, 1])


def test_printable() -> None:
    """Control characters of a peer do not reach a log."""
    assert printable("A\nB\x1b[") == "A?B?["
