"""What the protocol core of the native engine costs, without a network: ``python bench/native_core.py [--runs 15]``.

Microseconds, best run. "read" is what a driver pays for ``receive()`` with portions of 64 KiB, the decoding of command
sets included; "write" is ``send()``, ``send_data()`` and ``data_to_send()``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

from harmonyd.dimse.native.core import (
    AssociateRequest,
    Association,
    Command,
    CommandField,
    ProposedContext,
    Support,
    UserInformation,
    c_store_rq,
    negotiate,
)

CT_IMAGE, EXPLICIT_VR_LE = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.2.1"
PORTION_BYTES = 65536
RESPONSES, RESPONSE_BYTES = 1000, 200
OBJECT = bytes(512 * 1024)


def pair(max_pdu: int) -> tuple[Association, Association]:
    """A requestor and an acceptor, established."""
    proposed = (ProposedContext(1, CT_IMAGE, (EXPLICIT_VR_LE,)),)
    scu = Association.requestor(AssociateRequest("SCP", "SCU", proposed, UserInformation(max_pdu)))
    scp = Association.acceptor(max_pdu)
    scu.connected()
    scp.receive(scu.data_to_send())
    scp.accept(negotiate(proposed, {CT_IMAGE: Support((EXPLICIT_VR_LE,))}.get))
    scu.receive(scp.data_to_send())
    return scu, scp


def answers(scp: Association, counted: bool) -> bytes:
    """Pending responses with their data sets; ``counted``: no two command sets are the same."""
    asked = Command(CommandField.C_FIND_RQ, 1, affected_sop_class_uid=CT_IMAGE)
    for number in range(RESPONSES):
        scp.send(1, asked.response(0xFF00, remaining=number if counted else None), has_data=True)
        scp.send_data(1, bytes(RESPONSE_BYTES), True)
    return scp.data_to_send()


def stored(scu: Association) -> bytes:
    """A C-STORE with an object of 0.5 MB."""
    scu.send(1, c_store_rq(1, CT_IMAGE, "1.2.3"), has_data=True)
    scu.send_data(1, OBJECT, True)
    return scu.data_to_send()


def read(association: Association, data: bytes) -> None:
    """As a transport delivers it."""
    for at in range(0, len(data), PORTION_BYTES):
        association.receive(data[at : at + PORTION_BYTES])
    assert not association.closing


def best_micros(action: Callable[[], object], runs: int) -> float:
    """Shortest of several runs."""
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return min(times) * 1e6


def main() -> None:
    """Print one line a case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=15)
    runs = parser.parse_args().runs
    for name, counted in (("1,000 C-FIND responses", False), ("1,000 responses with counters", True)):
        scu, scp = pair(16384)
        data = answers(scp, counted)
        reading = best_micros(partial(read, scu, data), runs) / (2 * RESPONSES)
        writing = best_micros(partial(answers, scp, counted), runs) / (2 * RESPONSES)
        print(f"{name}, a PDU: read {reading:.1f} us, write {writing:.1f} us")
    for max_pdu in (16384, 65536):
        scu, scp = pair(max_pdu)
        data = stored(scu)
        reading = best_micros(partial(read, scp, data), runs)
        writing = best_micros(partial(stored, scu), runs)
        print(f"0.5 MB in PDUs of {max_pdu}, an object: read {reading:.0f} us, write {writing:.0f} us")


if __name__ == "__main__":
    main()
