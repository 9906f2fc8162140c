"""Reading ``/metrics`` as Prometheus does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from harmonyd.testing.daemon import RunningDaemon

PATH = "/metrics"


@dataclass(frozen=True)
class Scrape:
    """What was answered."""

    text: str

    @property
    def families(self) -> list[Metric]:
        return list(text_string_to_metric_families(self.text))

    def all(self, name: str, /, **labels: str) -> Iterator[tuple[dict[str, str], float]]:
        """Labels and values of the samples of this name that have these labels at least."""
        for family in self.families:
            for sample in family.samples:
                if sample.name == name and labels.items() <= sample.labels.items():
                    yield sample.labels, sample.value

    def sum(self, name: str, /, **labels: str) -> float:
        """Of all those; there must be one."""
        found = [value for _, value in self.all(name, **labels)]
        assert found, f"no {name} with {labels} in\n{self.text}"
        return sum(found)

    def has(self, name: str, /, **labels: str) -> bool:
        """Whether there is one."""
        return any(True for _ in self.all(name, **labels))

    def outcomes(self, backend: str, operation: str) -> dict[str, float]:
        """How operations have ended, without those of which there are none."""
        found = self.all("harmonyd_operations_total", backend=backend, operation=operation)
        return {labels["outcome"]: value for labels, value in found if value}

    @property
    def series(self) -> set[tuple[str, tuple[tuple[str, str], ...]]]:
        """Names and labels of all samples."""
        return {(each.name, tuple(sorted(each.labels.items()))) for family in self.families for each in family.samples}


def scrape(daemon: RunningDaemon) -> Scrape:
    """Ask, and read the answer as text."""
    answer = daemon.http("GET", PATH)
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    return Scrape(answer.body.decode("utf-8"))
