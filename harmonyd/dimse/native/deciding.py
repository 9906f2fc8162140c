"""C-STORE answered with what the pipeline came to, while the sender waits (PS3.7 section 9.1.1, PS3.4 section B.2.3).

Nothing is taken over: until it is told Success the object is the sender's, so what goes wrong leaves nothing here.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from harmonyd.acknowledge import PipelineAnswers
from harmonyd.dimse.engine import Arrival, NotDelivered, ObjectHandler, Obstacle
from harmonyd.dimse.native.inbound import InboundSession, Stopped
from harmonyd.dimse.native.storing import SUCCESS, Kept, Refused
from harmonyd.dimse.status import PROCESSING_FAILURE
from harmonyd.dimse.threads import in_thread


async def delivered(
    reactor: Any, handler: ObjectHandler, answers: PipelineAnswers, session: InboundSession, arrival: Arrival
) -> Kept:
    """Deliver an object, and remove it. Raises ``Refused``, and ``Ended`` when the sender is gone."""
    work = Deferred.fromCoroutine(handler.deliver_now(arrival))
    try:
        await _first_of(reactor, work, session, answers.timeout_secs)
    except NotDelivered as error:
        raise Refused(_status(answers, error), error.reason) from None
    except TimeoutError:
        raise Refused(answers.deadline, f"not delivered within {answers.timeout_secs:g} s") from None
    except Stopped:
        raise Refused(answers.deadline, "not delivered before the association had to end") from None
    await in_thread(reactor, _remove, arrival.instance.path)
    return SUCCESS, ""


def _remove(path: Path) -> None:
    """Whether or not that works, the object was delivered; the next start removes what lies there. Blocking."""
    with suppress(OSError):
        path.unlink()


def _status(answers: PipelineAnswers, error: NotDelivered) -> int:
    match error.obstacle:
        case Obstacle.REFUSED:
            return answers.refused
        case Obstacle.AWAY:
            return answers.away
    return answers.failed or error.status or PROCESSING_FAILURE


async def _first_of(reactor: Any, work: Deferred[None], session: InboundSession, timeout_secs: float) -> None:
    """What ``work`` comes to. It is cancelled, and not waited for, when the association or the time is over before.

    Raises ``TimeoutError``, and as ``InboundSession.tells_its_end``.
    """
    first: Deferred[None] = Deferred()

    def end(error: Exception) -> None:
        if not first.called:
            first.errback(error)
            work.cancel()

    def failed(failure: Failure) -> None:
        if not first.called:
            first.errback(failure)

    work.addCallbacks(lambda _: None if first.called else first.callback(None), failed)
    timer = reactor.callLater(timeout_secs, end, TimeoutError())
    try:
        with session.tells_its_end(end):
            await first
    finally:
        if timer.active():
            timer.cancel()
