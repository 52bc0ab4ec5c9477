"""What /metrics tells Prometheus: the engine's figures as they are, and how requests fared."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from cutaway.generate.batch.scheduler import Scheduler

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
GAUGES = {
    "running": "Answers under way",
    "queued": "Requests that wait for their turn",
    "pages_total": "Pages of state there is room for",
    "pages_used": "Pages promised to answers under way",
    "pages_kept": "Pages kept for texts that begin alike",
}
COUNTERS = {
    "prompt_tokens": "Tokens of the prompts that were read",
    "cached_tokens": "Of those, tokens taken over from a text that began alike",
    "generated_tokens": "Tokens written",
    "finished": "Answers that came to their end",
    "cancelled": "Answers that were stopped",
    "failed": "Answers that ended in an error",
    "refused": "Requests refused because the queue was full",
    "steps": "Steps of the model",
    "step_seconds": "Seconds spent in steps",
}


class Metrics:
    """A registry of this server's own, so that several in one process do not mix."""

    def __init__(self, scheduler: Scheduler | None) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "cutaway_requests", "Requests by path and status", ["path", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "cutaway_request_seconds",
            "From a request's arrival to the end of its answer",
            ["path"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.ignored = Counter(
            "cutaway_ignored_fields",
            "Fields of requests that were not used",
            ["field"],
            registry=self.registry,
        )
        self.first_token = Histogram(
            "cutaway_first_token_seconds",
            "From a request's arrival to its first token",
            buckets=SECONDS,
            registry=self.registry,
        )
        if scheduler is not None:
            self.registry.register(_Engine(scheduler))

    def text(self) -> bytes:
        """The page in Prometheus' text format."""
        return generate_latest(self.registry)


class _Engine(Collector):
    """The scheduler's figures, read when they are asked for."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        figures = self.scheduler.stats()
        for name, about in GAUGES.items():
            yield GaugeMetricFamily(f"cutaway_{name}", about, value=getattr(figures, name))
        for name, about in COUNTERS.items():
            yield CounterMetricFamily(f"cutaway_{name}", about, value=getattr(figures, name))
