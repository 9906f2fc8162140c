"""DIMSE-N in both roles: requests, answers, and reports on the way back, over real associations."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from asking_kit import FIND, Asking
from twisted.internet.defer import Deferred

from harmonyd.dimse.commitment import ALL_COMMITTED, action, event
from harmonyd.dimse.engine import OperationContext
from harmonyd.dimse.errors import AssociationAborted, NoPresentationContext
from harmonyd.dimse.native import core
from harmonyd.dimse.native.normalized import perform
from harmonyd.dimse.normalized import (
    ACTION,
    CREATE,
    PERFORMED_STEP,
    PUSH_MODEL,
    PUSH_MODEL_INSTANCE,
    SET,
    Listening,
    NormalizedAnswer,
    NormalizedRequest,
    Unanswered,
)
from harmonyd.dimse.recode import EXPLICIT_VR_LE, IMPLICIT_VR_LE, recoded
from harmonyd.dimse.serving import NotServed
from harmonyd.services.dicom.managed import text_of

PAIR = ("1.2.3", "1.1")
REQUEST, REPORT = action("9.1", [PAIR]), event("9.1", [PAIR], {})


@pytest.fixture
def asking(started_reactor: Any, tmp_path: Path) -> Iterator[Asking]:
    """Not started yet; at the end nothing of it is left."""
    made = Asking(started_reactor, tmp_path)
    yield made
    pytest_twisted.blockon(Deferred.fromCoroutine(made.stop()))
    assert not made.listeners.association_count()


async def ask(asking: Asking, request: NormalizedRequest, **options: Any) -> NormalizedAnswer:
    op = OperationContext("id", "request", asking.reactor.seconds() + 20)
    given = {"as_scp": False, "listening": None, "answered": lambda answer: None, **options}
    return await perform(asking.means, asking.node(), request, op, **given)


def answering(status: int = 0, comment: str = "", uid: str = "") -> Any:
    async def answer(asked: Any) -> NormalizedAnswer:
        return NormalizedAnswer(status, comment, uid)

    return answer


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("operation", [CREATE, SET])
async def test_a_step_and_its_answer(asking: Asking, operation: str) -> None:
    """The handler gets it as it was sent, and its status and comment come back."""
    asking.answer = answering(0x0110, "the RIS is away")
    await asking.start()
    request = NormalizedRequest(operation, PERFORMED_STEP, "1.7", REQUEST.data, EXPLICIT_VR_LE)
    answer = await ask(asking, request)
    assert (answer.status, answer.comment) == (0x0110, "the RIS is away")
    (asked,) = asking.managed
    assert (asked.request, asked.service, asked.association.calling_aet) == (request, "mpps", "WS")


@pytest_twisted.ensureDeferred
async def test_an_instance_that_the_performer_has_named(asking: Asking) -> None:
    """Its UID is in the answer."""
    asking.answer = answering(uid="1.8")
    await asking.start()
    answer = await ask(asking, NormalizedRequest(CREATE, PERFORMED_STEP, "", b"", EXPLICIT_VR_LE))
    assert (answer.status, answer.sop_instance_uid) == (0, "1.8")
    assert asking.managed[0].request.data == b""


@pytest_twisted.ensureDeferred
async def test_a_report_comes_back_over_the_same_association(asking: Asking, eventually: Any) -> None:
    """After the answer, and whoever listens answers it."""
    told: list[NormalizedAnswer] = []
    heard: list[NormalizedRequest] = []

    async def answer(asked: Any) -> NormalizedAnswer:
        Deferred.fromCoroutine(asked.ask_back(REPORT)).addCallback(told.append)
        return NormalizedAnswer(0)

    async def hear(request: NormalizedRequest) -> NormalizedAnswer:
        heard.append(request)
        return NormalizedAnswer(0x0112, "unknown")

    asking.answer = answer
    await asking.start()
    answered: list[NormalizedAnswer] = []
    listening = Listening(hear, 20.0, lambda: bool(heard))
    assert (await ask(asking, REQUEST, listening=listening, answered=answered.append)).status == 0
    assert (heard, len(answered)) == ([REPORT], 1)
    assert asking.managed[0].request == REQUEST
    await eventually(lambda: told)
    assert [(each.status, each.comment) for each in told] == [(0x0112, "unknown")]


@pytest_twisted.ensureDeferred
async def test_who_has_left_gets_no_report(asking: Asking) -> None:
    """The asking back fails at once, and again later."""
    await asking.start()
    asking.answer = answering()
    await ask(asking, REQUEST)
    (asked,) = asking.managed
    with pytest.raises(Unanswered):
        await asked.ask_back(REPORT)


@pytest_twisted.ensureDeferred
async def test_a_node_that_does_not_report_is_not_waited_for_long(asking: Asking) -> None:
    """The answer counts."""
    await asking.start()
    asking.answer = answering()
    listening = Listening(answering(), 0.05, lambda: False)
    assert (await ask(asking, REQUEST, listening=listening)).status == 0


@pytest_twisted.ensureDeferred
async def test_a_report_over_an_association_of_its_own(asking: Asking) -> None:
    """It needs the role of SCP, and is taken where nobody may ask for a commitment."""
    asking.answer = answering()
    await asking.start(services=("store",))
    assert (await ask(asking, REPORT, as_scp=True)).status == 0
    assert asking.managed[0].request.type_id == ALL_COMMITTED
    with pytest.raises(NoPresentationContext):
        await ask(asking, REQUEST)


@pytest_twisted.ensureDeferred
async def test_what_is_refused(asking: Asking) -> None:
    """By the handler, and what belongs to another presentation context; the association stays good."""

    async def refuse(asked: Any) -> NormalizedAnswer:
        raise NotServed(0x0131, "again")

    asking.answer = refuse
    await asking.start()
    assert (await ask(asking, REQUEST)).status == 0x0131
    assoc = await asking.call(FIND, PUSH_MODEL)
    assoc.send(assoc.context(FIND).id, core.n_action_rq(1, PUSH_MODEL, PUSH_MODEL_INSTANCE, 1), REQUEST.data)
    response, _ = await assoc.response(1)
    assert (response.status, response.action_type_id) == (0x0122, 1)
    assoc.send(assoc.context(PUSH_MODEL).id, core.n_action_rq(2, PUSH_MODEL, PUSH_MODEL_INSTANCE, 1), REQUEST.data)
    assert (await assoc.response(2))[0].status == 0x0131
    assert len(asking.managed) == 2
    await assoc.release()


@pytest_twisted.ensureDeferred
async def test_a_caller_that_leaves_ends_the_work(asking: Asking, eventually: Any) -> None:
    """It is cancelled, and nothing is left."""
    ended: list[str] = []
    never: Deferred[Any] = Deferred(lambda _: ended.append("cancelled"))

    async def wait(asked: Any) -> NormalizedAnswer:
        return await never

    asking.answer = wait
    await asking.start()
    assoc = await asking.call(PERFORMED_STEP)
    assoc.send(assoc.context(PERFORMED_STEP).id, core.n_set_rq(1, PERFORMED_STEP, "1.7"), REQUEST.data)
    await eventually(lambda: asking.managed)
    assoc.abort()
    await eventually(lambda: ended)
    with pytest.raises(AssociationAborted):
        await assoc.response(1)


@pytest_twisted.ensureDeferred
async def test_a_data_set_goes_in_the_syntax_that_was_agreed_on(asking: Asking) -> None:
    """Implicit VR to who takes nothing else is for the engine to make."""
    asking.answer = answering()
    await asking.start()
    implicit = recoded(REQUEST.data, EXPLICIT_VR_LE, IMPLICIT_VR_LE)
    await ask(asking, NormalizedRequest(ACTION, PUSH_MODEL, PUSH_MODEL_INSTANCE, implicit, IMPLICIT_VR_LE, 1))
    (asked,) = asking.managed
    assert asked.request.transfer_syntax_uid == EXPLICIT_VR_LE
    assert text_of(asked.request) == text_of(REQUEST)
