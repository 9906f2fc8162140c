"""What a PACS delivers to our own port for C-MOVE, object by object, without a network."""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from fake_net import FakeNet
from twisted.internet.defer import Deferred

from harmonyd.dimse.engine import MoveReceiver
from harmonyd.dimse.native import core, names
from harmonyd.dimse.native.deliveries import Delivery, MoveDeliveries
from harmonyd.dimse.native.exchange import Means
from harmonyd.dimse.native.move_ports import MovePorts
from harmonyd.dimse.native.storing import Offer, Reception
from harmonyd.dimse.part10 import read_header
from harmonyd.dimse.quarantine import Quota

RECEIVER = MoveReceiver("transient", "US", 11114)


class NoListeners:
    """Claims of ports that nothing listens on; also the listener of each."""

    def claim_for_moves(self, place: Any, deliveries: MoveDeliveries, tls: Any = None) -> NoListeners:
        return self

    def release_moves(self, place: Any, deliveries: MoveDeliveries) -> None: ...

    async def end_associations(self, deliveries: MoveDeliveries) -> None: ...


@dataclass
class UnderWay:
    """An object of which the command has come."""

    reception: Reception
    source: Path


class Deliverer:
    """Sends any of ``files`` to the moves that run, or that have run."""

    def __init__(self, net: FakeNet, means: Means, files: Sequence[Path], chance: random.Random) -> None:
        quota = Quota(means, means.quarantine, 10**9)
        listeners: Any = NoListeners()
        self.ports = MovePorts(means, means.storage, means.quarantine, listeners, quota)
        self.kept_count = 0
        self._net, self._means, self._files, self._chance = net, means, files, chance
        self._under_way: list[UnderWay] = []
        self._deliveries: MoveDeliveries | None = None
        self._moves: list[Delivery] = []

    def begin(self, what: str) -> None:
        """The command of an object: it names a move or none, or is not of what was asked for."""
        for port in self.ports._ports.values():
            self._deliveries = port.deliveries
            self._moves += [each for each in port.deliveries._expected if each not in self._moves]
        if self._deliveries is None:
            return
        source = self._chance.choice(self._files)
        uid = read_header(source).sop_instance_uid if what != "unasked" else "1.2.3.4"
        command = core.c_store_rq(7, names.COMMON_STORAGE[0], uid, **self._originator(what))
        session: Any = SimpleNamespace(association=SimpleNamespace(id="a", calling_aet="PEER", called_aet="US"))
        self._under_way.append(UnderWay(self._deliveries.begin(Offer(session, command)), source))

    def _originator(self, what: str) -> dict[str, Any]:
        if what == "nameless" or not self._moves:
            return {}
        move = self._moves[-1] if what == "named" else self._chance.choice(self._moves)
        return {"move_originator_aet": move.originator_aet, "move_originator_message_id": move.message_id}

    def finish(self) -> None:
        """The rest of all objects that are under way."""
        while self._under_way:
            each = self._under_way.pop(self._chance.randrange(len(self._under_way)))
            shutil.copyfile(each.source, each.reception.path)
            kept = Deferred.fromCoroutine(each.reception.keep(each.reception.path, read_header(each.source)))
            self._net.settle()
            status, _ = kept.result
            assert status in (0x0000, 0xB000)
            self.kept_count += 1
            each.reception.ended()
            self._net.settle()

    def file_count(self) -> int:
        """Objects in the folders of the moves, and in quarantine."""
        storage = self._means.storage
        folders = [*storage.glob("dcmtk_move_*"), storage / "incoming", self._means.quarantine]
        found = {path for folder in folders for path in folder.rglob("*") if path.is_file()}
        return sum(path.suffix != ".json" for path in found)

    def assert_unused(self) -> None:
        """No move, port or message id is left."""
        assert not self.ports._ports
        assert not self.ports._used_ids
