"""C-ECHO and C-FIND as an SCU: the association is used again, and every way to leave it is an end."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
import pytest_twisted
from pynetdicom import AE, evt
from scu_kit import Scu, query, read
from twisted.internet.defer import CancelledError
from twisted.internet.task import deferLater

from harmonyd.dimse.engine import QueryLevel
from harmonyd.dimse.errors import (
    AssociationAborted,
    AssociationRejected,
    DimseFailure,
    DimseTimeout,
    NonsenseAnswer,
    NoPresentationContext,
)
from harmonyd.dimse.native import find, names
from harmonyd.errors import DeadlinePassed
from harmonyd.identity import Credentials


@pytest_twisted.ensureDeferred
async def test_matches(scu: Scu, peer: Any) -> None:
    """Every match arrives in the DICOM JSON Model, and the outcome is the node's."""
    node = scu.node(peer(count=250, charset="mixed"))
    stream = find.find(scu.means, node, query(keys={"PatientName": "", "StudyInstanceUID": ""}), scu.op())
    matches = [json.loads(match.json) for match in await read(stream)]
    assert len(matches) == 250
    assert len({match["0020000D"]["Value"][0] for match in matches}) == 250
    assert stream.outcome.complete and stream.outcome.status == 0


@pytest_twisted.ensureDeferred
async def test_one_association_for_many_operations(scu: Scu, peer: Any) -> None:
    """Operations one after the other, of all kinds, are asked over one association, as the node sees it."""
    server = peer()
    node = scu.node(server)
    for _ in range(5):
        assert (await find.echo(scu.means, node, scu.op())).status == 0
        assert len(await read(find.find(scu.means, node, query(), scu.op()))) == 3
    assert len(server.events("association")) == 1
    assert (scu.pool.open_count(node), scu.pool.idle_count(node)) == (1, 1)


@pytest.mark.parametrize("passcode", ["", "s3cret"])
@pytest_twisted.ensureDeferred
async def test_user_identity(scu: Scu, peer: Any, passcode: str) -> None:
    """A node that asks who we are hears it, with a passcode where there is one; another one is refused by it."""
    server = peer(users={"gate": passcode})
    node = scu.node(server, user_identity=Credentials("gate", passcode or None))
    assert (await find.echo(scu.means, node, scu.op())).status == 0
    for wrong in (Credentials("gate", "wrong"), Credentials("nobody", passcode or None)):
        with pytest.raises(AssociationRejected):
            await find.echo(scu.means, scu.node(server, user_identity=wrong), scu.op())


@pytest_twisted.ensureDeferred
async def test_at_once(scu: Scu, peer: Any) -> None:
    """As many at once as there may be associations, the rest after them."""
    server = peer(interval_secs=0.05)
    node = scu.node(server)
    running = [scu.start(find.find(scu.means, node, query(), scu.op())) for _ in range(12)]
    most = 0
    for items, done in running:
        most = max(most, scu.pool.open_count(node))
        await done
        assert len(items) == 3
    assert most == node.max_associations == len(server.events("association"))


@pytest_twisted.ensureDeferred
async def test_too_many_matches_are_cancelled(scu: Scu, peer: Any, eventually: Any) -> None:
    """At max_results the node sees a C-CANCEL, and the association is used on."""
    server = peer(count=1000, interval_secs=0.02)
    node = scu.node(server)
    stream = find.find(scu.means, node, query(), scu.op(max_results=5))
    assert len(await read(stream)) == 5
    assert not stream.outcome.complete and "max_results" in (stream.outcome.incomplete_reason or "")
    await eventually(lambda: server.events("cancel"))
    await find.echo(scu.means, node, scu.op())
    assert len(server.events("association")) == 1 and not server.events("aborted")


@pytest.mark.parametrize("take", [1, 3])
@pytest_twisted.ensureDeferred
async def test_a_client_that_leaves(scu: Scu, peer: Any, eventually: Any, take: int) -> None:
    """Closing the stream cancels the operation at the node, and gives the permit back."""
    server = peer(count=1000, interval_secs=0.02)
    node = scu.node(server)
    items, done = scu.start(find.find(scu.means, node, query(), scu.op()), take)
    await done
    assert len(items) == take
    await eventually(lambda: server.events("cancel"))
    assert scu.pool.idle_count(node) == 1


@pytest_twisted.ensureDeferred
async def test_a_node_without_cancel(scu: Scu, peer: Any, eventually: Any) -> None:
    """A node that goes on after a C-CANCEL, here for longer than the test may take, is aborted."""
    server = peer(count=100_000, interval_secs=0.01, ignore_cancel=True)
    node = scu.node(server)
    await read(find.find(scu.means, node, query(), scu.op()), take=1)
    await eventually(lambda: server.events("aborted"))
    await eventually(lambda: scu.pool.open_count(node) == 0)


@pytest.mark.parametrize("secs", [0.001, 0.05, 0.3])
@pytest_twisted.ensureDeferred
async def test_cancelled_at_any_time(scu: Scu, peer: Any, eventually: Any, secs: float) -> None:
    """Cancelling what awaits an operation, in whatever phase it is, ends it with nothing left."""
    server = peer(count=1000, interval_secs=0.01)
    node = scu.node(server)
    _, done = scu.start(find.find(scu.means, node, query(), scu.op()))
    await deferLater(scu.reactor, secs)
    done.cancel()
    with pytest.raises(CancelledError):
        await done
    await eventually(lambda: scu.pool.open_count(node) == scu.pool.idle_count(node))


@pytest_twisted.ensureDeferred
async def test_cancelled_while_it_is_cancelled(scu: Scu, peer: Any, eventually: Any) -> None:
    """A second cancellation, while the node is told of the first, aborts the association."""
    server = peer(count=10_000, interval_secs=0.01, ignore_cancel=True)
    node = scu.node(server)
    items, done = scu.start(find.find(scu.means, node, query(), scu.op()))
    await eventually(lambda: items)
    done.cancel()
    await deferLater(scu.reactor, 0.1)
    assert not server.events("aborted")
    done.cancel()
    with pytest.raises(CancelledError):
        await done
    await eventually(lambda: server.events("aborted"))
    await eventually(lambda: scu.pool.open_count(node) == 0)


@pytest.mark.parametrize("reading", [True, False])
@pytest_twisted.ensureDeferred
async def test_deadline(scu: Scu, peer: Any, eventually: Any, reading: bool) -> None:
    """At the deadline the association is ended, whether anybody reads or not, and the reader is told why."""
    server = peer(count=10, after=2, then="hang")
    node = scu.node(server)
    stream = find.find(scu.means, node, query(), scu.op(secs=0.7))
    items = aiter(stream)
    assert [await anext(items), await anext(items)]
    if not reading:
        await eventually(lambda: server.events("aborted"))
    with pytest.raises(DeadlinePassed) as raised:
        await anext(items)
    assert raised.value.extra["timeout"] == "operation"
    await eventually(lambda: server.events("aborted"))
    await stream.aclose()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"after": 1, "then": "abort"}, AssociationAborted),
        ({"after": 1, "then": "drop"}, AssociationAborted),
        ({"after": 1, "then": "garbage"}, NonsenseAnswer),
        ({"status": 0xA700, "comment": "no room"}, DimseFailure),
    ],
)
@pytest_twisted.ensureDeferred
async def test_what_nodes_do(scu: Scu, peer: Any, options: dict[str, Any], error: type[Exception]) -> None:
    """Each way a node may fail has its error, behind the matches that came before."""
    node = scu.node(peer(**options))
    items, done = scu.start(find.find(scu.means, node, query(), scu.op()))
    with pytest.raises(error):
        await done
    assert len(items) == options.get("after", 3)


@pytest_twisted.ensureDeferred
async def test_silence(scu: Scu, peer: Any) -> None:
    """A node that says nothing for as long as is allowed is given up; which silence it was is told."""
    node = scu.node(peer(after=0, then="hang"), association_timeout_secs=0.3)
    with pytest.raises(DimseTimeout) as raised:
        await find.echo(scu.means, node, scu.op())
    assert raised.value.extra["timeout"] == "dimse"
    node = scu.node(peer("silent"), association_timeout_secs=0.3)
    with pytest.raises(DimseTimeout) as raised:
        await find.echo(scu.means, node, scu.op())
    assert raised.value.extra["timeout"] == "association"


@pytest_twisted.ensureDeferred
async def test_refused(scu: Scu, peer: Any) -> None:
    """A rejection and a refused presentation context are told apart."""
    with pytest.raises(AssociationRejected):
        await find.echo(scu.means, scu.node(peer("reject")), scu.op())
    refusing = peer("no-contexts")
    with pytest.raises(NoPresentationContext):
        await find.echo(scu.means, scu.node(refusing), scu.op())


@pytest.mark.parametrize("script", ["garbage", "close"])
@pytest_twisted.ensureDeferred
async def test_no_dicom(scu: Scu, peer: Any, script: str) -> None:
    """What does not speak DICOM is no reason to wait."""
    with pytest.raises((NonsenseAnswer, AssociationAborted)):
        await find.echo(scu.means, scu.node(peer(script)), scu.op())


@pytest_twisted.ensureDeferred
async def test_dcmqrscp(scu: Scu, pacs: Any) -> None:
    """Every level of a real PACS can be asked."""
    node = scu.node(pacs)
    studies = await read(find.find(scu.means, node, query(keys={"StudyInstanceUID": ""}), scu.op()))
    uids = [json.loads(study.json)["0020000D"]["Value"][0] for study in studies]
    assert len(uids) >= 7
    keys = {"StudyInstanceUID": uids[0], "SeriesInstanceUID": "", "Modality": ""}
    assert await read(find.find(scu.means, node, query(QueryLevel.SERIES, keys), scu.op()))
    assert scu.pool.open_count(node) == 1


@pytest_twisted.ensureDeferred
async def test_a_node_with_a_lower_limit(scu: Scu) -> None:
    """A node that takes fewer associations than we may open gets all the questions, one after the other."""
    server: Any = AE("LIMITED")
    server.maximum_associations = 2
    for uid in names.FIND.values():
        server.add_supported_context(uid)

    def answer(event: Any) -> Iterator[tuple[int, Any]]:
        time.sleep(0.2)
        yield 0xFF00, event.identifier

    running = server.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_FIND, answer)])
    try:
        node = scu.node(port=running.server_address[1], aet="LIMITED")
        asked = []
        for _ in range(8):
            asked.append(scu.start(find.find(scu.means, node, query(keys={"StudyInstanceUID": ""}), scu.op())))
            await deferLater(scu.reactor, 0.03)  # pynetdicom counts those that it rejects, too
        for items, done in asked:
            await done
            assert len(items) == 1
        await scu.pool.close()
    finally:
        await scu.means.in_thread(running.shutdown)
