"""Parts of ``/metrics`` that are hard to reach from outside: disks that hang, timers that are late, old series."""

from __future__ import annotations

from pathlib import Path

import pytest
import pytest_twisted
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.internet.task import Clock

from harmonyd import config
from harmonyd.audit.api import AuditFigures
from harmonyd.dimse.errors import DimseFailure, RemoteUnreachable
from harmonyd.errors import BadRequest, HarmonydError, NotFound, Unavailable
from harmonyd.metrics import metrics
from harmonyd.metrics.certificates import expiry
from harmonyd.metrics.lag import INTERVAL_SECS, LoopLag
from harmonyd.metrics.operations import OperationMeter
from harmonyd.metrics.requests import RequestMeter
from harmonyd.metrics.shared import Shared
from harmonyd.metrics.state import Sources
from harmonyd.services.dicom.metering import OUTCOMES, outcome_of, outcome_of_error
from harmonyd.testing.certificates import Authority, of_version_2
from harmonyd.testing.config_files import write_config
from harmonyd.testing.processes import free_port


class Asked:
    """Answers when it is told to."""

    def __init__(self) -> None:
        self.answers: list[Deferred[str]] = []

    async def __call__(self) -> str:
        self.answers.append(Deferred())
        return await self.answers[-1]


# --- shared


def test_who_asks_at_the_same_time_shares_an_answer() -> None:
    """One question for three who ask; the next who asks makes it another."""
    asked, clock = Asked(), Clock()
    shared = Shared(clock, asked)
    waiting = [Deferred.fromCoroutine(shared.get(5)) for _ in range(3)]
    assert len(asked.answers) == 1
    asked.answers[0].callback("here")
    assert [each.result for each in waiting] == ["here"] * 3
    Deferred.fromCoroutine(shared.get(5))
    assert len(asked.answers) == 2
    asked.answers[1].callback("again")
    assert not clock.getDelayedCalls()


def test_what_hangs_is_not_asked_again() -> None:
    """Who waits is told in time; whatever hangs is asked once, and serves the next when it comes back."""
    asked, clock = Asked(), Clock()
    shared = Shared(clock, asked)
    first = Deferred.fromCoroutine(shared.get(2))
    clock.advance(2)
    assert first.result.check(TimeoutError)
    first.addErrback(lambda _: None)
    second = Deferred.fromCoroutine(shared.get(2))
    assert len(asked.answers) == 1
    asked.answers[0].callback("late")
    assert second.result == "late"


def test_who_leaves_takes_nothing_from_others() -> None:
    """The answer comes to those who stay; the timer of who left is gone."""
    asked, clock = Asked(), Clock()
    shared = Shared(clock, asked)
    leaving, staying = (Deferred.fromCoroutine(shared.get(5)) for _ in range(2))
    leaving.addErrback(lambda failure: failure.trap(CancelledError))
    leaving.cancel()
    assert len(clock.getDelayedCalls()) == 1
    asked.answers[0].callback("here")
    assert staying.result == "here"


def test_an_answer_that_fails_fails_for_all() -> None:
    """And is asked for again by the next."""
    asked = Asked()
    shared = Shared(Clock(), asked)
    waiting = [Deferred.fromCoroutine(shared.get(5)) for _ in range(2)]
    asked.answers[0].errback(OSError("the disk"))
    for each in waiting:
        assert each.result.check(OSError)
        each.addErrback(lambda _: None)
    Deferred.fromCoroutine(shared.get(5))
    assert len(asked.answers) == 2
    asked.answers[1].callback("well")


# --- lag


def test_lag_is_how_late_a_timer_is() -> None:
    """In time is 0, two seconds late is 2, a timer that comes early is 0; after ``stop`` none is left."""
    clock, seen, monotonic = Clock(), list[float](), [0.0]
    lag = LoopLag(clock, seen.append, lambda: monotonic[0])
    lag.start()
    lag.start()
    assert len(clock.getDelayedCalls()) == 1
    for late in (0.0, 2.0, -0.5):
        monotonic[0] += INTERVAL_SECS + late
        clock.advance(INTERVAL_SECS)
    assert seen == [0.0, 2.0, 0.0]
    lag.stop()
    lag.stop()
    assert not clock.getDelayedCalls()


# --- operations and requests


def test_steps_of_an_operation_are_timed() -> None:
    """Queue, association, first result and the whole, each once, whatever is told twice."""
    registry, now = CollectorRegistry(), [10.0]
    measure = OperationMeter(registry, lambda: now[0]).begin("pacs", "find")
    steps = measure.steps
    for step, secs in (
        *((steps.queued, 1.0), (steps.began, 2.0), (steps.associated, 3.0), (measure.first, 4.0)),
        *((steps.queued, 0.0), (steps.began, 0.0), (steps.associated, 0.0), (measure.first, 0.0)),
    ):
        now[0] += secs
        step()
    now[0] += 5.0
    measure.arrived(3, 700)
    measure.ended("complete")
    labels = {"backend": "pacs", "operation": "find"}

    def value(name: str, **more: str) -> float | None:
        return registry.get_sample_value(f"harmonyd_{name}", {**labels, **more})

    sums = {"queue_": 2.0, "association_": 3.0, "first_result_": 10.0, "": 15.0}
    assert {name: value(f"operation_{name}seconds_sum") for name in sums} == sums
    assert all(value(f"operation_{name}seconds_count") == 1 for name in sums)
    assert (value("operation_results_total"), value("operation_bytes_total")) == (3, 700)
    assert value("operations_in_flight") == 0
    assert [outcome for outcome in OUTCOMES if value("operations_total", outcome=outcome)] == ["complete"]


def test_series_of_backends_that_are_gone_go() -> None:
    """What still runs there ends unnoticed, and a backend of the same name begins anew."""
    registry = CollectorRegistry()
    meter = OperationMeter(registry)
    running = meter.begin("old", "get")
    meter.begin("kept", "get").ended("complete")
    meter.keep({"kept"})
    assert b"old" not in generate_latest(registry)
    meter.begin("old", "get")
    running.ended("cancelled")
    in_flight = "harmonyd_operations_in_flight"
    assert registry.get_sample_value(in_flight, {"backend": "old", "operation": "get"}) == 1
    assert registry.get_sample_value(in_flight, {"backend": "kept", "operation": "get"}) == 0


@pytest.mark.parametrize(
    ("status", "label"), [(200, "2xx"), (599, "5xx"), (999, "other"), (0, "other"), (12345, "other"), (None, "cut")]
)
def test_statuses_have_few_classes(status: int | None, label: str) -> None:
    """Whatever an HTTP server behind us answers; a clock that is set back makes no negative duration."""
    registry = CollectorRegistry()
    meter = RequestMeter(registry)
    meter("gate", status, -3.0)
    assert registry.get_sample_value("harmonyd_http_requests_total", {"endpoint": "gate", "status": label}) == 1
    assert registry.get_sample_value("harmonyd_http_request_seconds_sum", {"endpoint": "gate"}) == 0
    meter.forget({"gate", "other"})
    assert b"gate" not in generate_latest(registry)


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (CancelledError(), "cancelled"),
        (GeneratorExit(), "cancelled"),
        (NotFound("x"), "nothing_found"),
        (RemoteUnreachable("x"), "unreachable"),
        (DimseFailure("x"), "failure_status"),
        (Unavailable("x"), "busy"),
        (BadRequest("x"), "caller_error"),
        (HarmonydError("x"), "our_error"),
        (ValueError("x"), "our_error"),
    ],
)
def test_errors_have_an_outcome(error: BaseException, outcome: str) -> None:
    """The nearest class that is in the table decides, then whose fault it is."""
    assert outcome_of_error(error) == outcome
    assert outcome in OUTCOMES


def test_outcomes_of_summaries() -> None:
    """What says nothing of it is complete."""
    given = [{}, {"complete": True}, {"complete": False}, {"complete": False, "outcome": "cancelled"}]
    assert list(map(outcome_of, given)) == ["complete", "complete", "incomplete", "cancelled"]


# --- certificates


def test_the_first_to_expire_counts(tmp_path: Path) -> None:
    """Of a chain; a file without anything usable, and one that is not there, have no time."""
    authority = Authority(tmp_path)
    short, long = authority.issue("short", days=2), authority.issue("long", days=90)
    chain = tmp_path / "chain.pem"
    chain.write_bytes(long.cert.read_bytes() + short.cert.read_bytes())
    assert expiry(chain) == expiry(short.cert) != expiry(long.cert)
    chain.write_bytes(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    assert expiry(chain) is None
    chain.write_text(of_version_2(short.cert))
    assert expiry(chain) is None
    assert expiry(tmp_path / "missing") is None
    assert expiry(tmp_path) is None


# --- everything


@pytest_twisted.ensureDeferred
async def test_a_disk_that_hangs_costs_only_its_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged_failures: object
) -> None:
    """The spool does not answer: everything else is told, that it is missing, too, and it is not asked again."""
    from twisted.internet import reactor

    monkeypatch.setattr(metrics, "PART_SECS", 0.05)
    given = config.load(write_config(tmp_path, http_port=free_port(), backends={"answer": {"service": "echo"}}))
    hanging = Asked()
    cache = {"entries": 1, "instances": 2, "bytes": 3, "max_bytes": 4, "retrieving": 5}
    later = {"running": 7, "kept": 8, "bytes": 9, "watchers": 10}
    sources = Sources(
        list, hanging, lambda: cache, lambda: {"kept": 6}, lambda: later, lambda: (11, 12), lambda: False, AuditFigures
    )
    made = metrics.Metrics(reactor, given, sources)
    for _ in range(2):
        text = (await made.text()).decode("utf-8")
        found = {sample.name: sample.value for family in text_string_to_metric_families(text)
                 for sample in family.samples if not {"part", "le"} & sample.labels.keys()}  # fmt: skip
        assert found["harmonyd_cache_bytes"] == 3
        assert found["harmonyd_ready"] == 0
        assert "harmonyd_spool_objects" not in found
        assert 'harmonyd_scrape_ok{part="spool"} 0.0' in text
        assert 'harmonyd_scrape_ok{part="certificates"} 1.0' in text
        assert "_created" not in text
    assert len(hanging.answers) == 1
    made.stop()
