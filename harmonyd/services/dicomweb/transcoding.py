"""A file in another transfer syntax, where pydicom and the codecs that are installed can (PS3.18 section 8.7.3.5)."""

from __future__ import annotations

import os
import uuid
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

from pydicom import Dataset, dcmread
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian

from harmonyd.dimse.part10 import read_header
from harmonyd.errors import HarmonydError, NotAcceptable
from harmonyd.privacy import said
from harmonyd.services.dicomweb.codecs import INSTALL

_SWAPPED = {"OW": "H", "OF": "L", "OL": "L", "OD": "Q", "OV": "Q"}
_ITEM_BYTES = {"H": 2, "L": 4, "Q": 8}
MAX_BYTES = 1 << 30
"""Largest file that is transcoded: that takes several times its size in memory."""
_HINT = f"{INSTALL} for the codecs, or accept transfer-syntax=*, which is as stored."


def in_this_process(source: Path, target: Path, syntax: str) -> None:
    """``write_as`` from file to file. Raises what that raises."""
    with source.open("rb") as read, target.open("xb") as written:
        write_as(read, written, syntax)


def transcoded(
    source: Path, wanted: Sequence[str], write: Callable[[Path, Path, str], None] = in_this_process
) -> Path:
    """Return ``source`` where its transfer syntax is ``wanted``, else a new file beside it in the first that works.

    SOP Instance UIDs stay. Blocking. Raises ``NotAcceptable`` when none can be made, ``DamagedFile``, ``OSError``.
    """
    stored = read_header(source).transfer_syntax_uid
    if stored in wanted:
        return source
    reasons = []
    for uid in wanted:
        target = source.with_name(f"{source.name}.{uuid.uuid4().hex}.transcoded")
        try:
            write(source, target, uid)
        except Exception as error:
            target.unlink(missing_ok=True)
            # Codecs and pydicom raise anything for data that they cannot take.
            if isinstance(error, OSError | HarmonydError) and not isinstance(error, NotAcceptable):
                raise
            reasons.append(f"{uid[:64]}: {said(error)[:200]}")
        else:
            return target
    raise NotAcceptable(
        f"An instance stored in {stored} cannot be had in a transfer syntax that the client accepts "
        f"({'; '.join(reasons)})",
        hint=_HINT,
        stored_transfer_syntax=stored,
    )


def write_as(source: BinaryIO, target: BinaryIO, syntax: str) -> None:
    """Write an object in another transfer syntax. Raises anything for what cannot be done."""
    uid = UID(syntax)
    if not uid.is_transfer_syntax or uid in (DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian):
        raise ValueError("not a transfer syntax that can be made here")
    if os.fstat(source.fileno()).st_size > MAX_BYTES:
        raise ValueError(f"it is larger than {MAX_BYTES} bytes")
    ds: Dataset = dcmread(source)
    stored = ds.file_meta.TransferSyntaxUID
    if stored == ExplicitVRBigEndian:
        ds = _little(ds)
    if stored.is_encapsulated and "PixelData" in ds:
        ds.decompress(generate_instance_uid=False)
    if uid.is_encapsulated:
        if "PixelData" not in ds:
            raise ValueError("it has no pixels to compress")
        ds.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.1")
        ds.compress(uid, generate_instance_uid=False)
    ds.file_meta.TransferSyntaxUID = uid
    ds.save_as(target, implicit_vr=uid == ImplicitVRLittleEndian, little_endian=True, enforce_file_format=False)


def _little(ds: Dataset) -> Dataset:
    """A copy that pydicom writes in little endian; what it leaves in the order of the file is swapped here."""
    copy = Dataset()
    for element in ds.iterall():
        code = _SWAPPED.get(element.VR)
        if code is not None and isinstance(element.value, bytes):
            element.value = swapped(element.value, _ITEM_BYTES[code])
    copy.update(ds)
    copy.file_meta = ds.file_meta
    copy.preamble = b"\0" * 128
    return copy


def swapped(data: bytes, size: int) -> bytes:
    """Return ``data`` with the bytes of each item of ``size`` bytes in the other order."""
    code = next(code for code in "HILQ" if array(code).itemsize == size)
    values = array(code, data)
    values.byteswap()
    return values.tobytes()
