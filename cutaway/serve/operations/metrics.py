"""Prometheus metrics (/metrics): the scheduler's figures, requests by outcome, use by key.

Names and base units are those that Prometheus asks for (prometheus.io/docs/practices/naming).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from prometheus_client import (
    CollectorRegistry,
    Counter,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from cutaway.generate.batch.scheduler import SchedulerStats
    from cutaway.serve.operations.api_keys import KeyRing

SECONDS = (
    *(0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 7.5),
    *(10, 15, 20, 30, 45, 60, 90, 120, 300, 600),
)
TOKEN_SECONDS = (
    *(0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075),
    *(0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2.5),
)
TOKENS = tuple(2**n for n in range(18))
GAUGES: dict[str, tuple[str, Callable[[SchedulerStats], float]]] = {
    "requests_running": ("Answers under way", lambda stats: stats.running),
    "requests_waiting": ("Requests that wait for their turn", lambda stats: stats.queued),
    "kv_cache_pages": ("Pages of KV cache there is room for", lambda stats: stats.pages_total),
    "kv_cache_pages_used": ("Pages reserved for answers under way", lambda stats: stats.pages_used),
    "kv_cache_pages_kept": ("Pages that the prefix cache keeps", lambda stats: stats.pages_kept),
    "kv_cache_pages_free": (
        "Pages that neither answers nor the prefix cache hold",
        lambda stats: max(0, stats.pages_total - stats.pages_used - stats.pages_kept),
    ),
    "kv_cache_page_bytes": ("Bytes of one page", lambda stats: stats.page_bytes),
    "prefix_store_bytes": ("Bytes of pages on disk (--prefix-cache)", lambda stats: stats.stored.nbytes),
}
STORED = {
    "loaded": "Pages that were loaded from disk",
    "written": "Pages that were written to disk",
    "damaged": "Pages on disk that were damaged, and deleted",
    "failed": "Pages that could not be written to disk",
}
COUNTERS = {
    "prompt_tokens": "Tokens of the prompts that were read",
    "cached_tokens": "Of those, tokens found in the prefix cache",
    "restored_tokens": "Of those, tokens whose pages were loaded from disk",
    "generated_tokens": "Tokens generated",
    "drafted_tokens": "Tokens proposed ahead (--draft)",
    "accepted_tokens": "Of those, tokens that were chosen",
    "finished": "Answers that came to their end",
    "cancelled": "Answers that were stopped",
    "failed": "Answers that ended in an error",
    "refused": "Requests refused because the queue was full",
    "steps": "Steps of the model",
    "step_seconds": "Seconds spent in steps",
}
USED = {
    "requests": "Requests of an API key that were admitted",
    "refused": "Requests of an API key past a quota",
    "prompt_tokens": "Prompt tokens of an API key",
    "cached_tokens": "Of those, tokens found in the prefix cache",
    "generated_tokens": "Tokens generated for an API key",
}


class Metrics:
    """A registry of this server's own, so that several in one process do not mix."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        by_path = ["path", "status", "model"]
        self.requests = Counter(
            "cutaway_requests", "Requests by path, status and model", by_path, registry=registry
        )
        self.loads = Counter("cutaway_model_loads", "Loads of a model", ["model"], registry=registry)
        self.unloads = Counter("cutaway_model_unloads", "Unloads of a model", ["model"], registry=registry)
        self.ignored = Counter(
            "cutaway_ignored_fields", "Fields of requests that were not used", ["field"], registry=registry
        )

        def histogram(name: str, about: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"cutaway_{name}", about, labels, buckets=buckets, registry=registry)

        self.seconds = histogram(
            "request_duration_seconds",
            "From a request's arrival to its answer's end",
            SECONDS,
            "path",
            "model",
        )
        self.first_token = histogram(
            "time_to_first_token_seconds", "From a request's arrival to its first token", SECONDS, "model"
        )
        about = "From joining the queue to the start of the prefill"
        self.queue = histogram("queue_seconds", about, SECONDS, "model")
        about = "Per token of an answer after the first"
        self.per_token = histogram("time_per_output_token_seconds", about, TOKEN_SECONDS, "model")
        self.prompt = histogram("request_prompt_tokens", "Tokens of a prompt", TOKENS, "model")
        self.generated = histogram("request_generated_tokens", "Tokens of an answer", TOKENS, "model")
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=registry)

    def add_schedulers(self, stats: Callable[[], dict[str, SchedulerStats]]) -> None:
        """Show the figures of the schedulers that there are, by model."""
        self.registry.register(_Schedulers(stats))

    def add_tenants(self, keys: KeyRing) -> None:
        """Show what each API key used."""
        self.registry.register(_Tenants(keys))

    def text(self) -> bytes:
        """The page in Prometheus' text format."""
        return generate_latest(self.registry)


class _Schedulers(Collector):
    """The schedulers' figures, read when they are asked for."""

    def __init__(self, stats: Callable[[], dict[str, SchedulerStats]]) -> None:
        self.stats = stats

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        found = self.stats()
        for name, (about, value) in GAUGES.items():
            gauge = GaugeMetricFamily(f"cutaway_{name}", about, labels=["model"])
            for model, stats in found.items():
                gauge.add_metric([model], value(stats))
            yield gauge
        for name, about in COUNTERS.items():
            counter = CounterMetricFamily(f"cutaway_{name}", about, labels=["model"])
            for model, stats in found.items():
                counter.add_metric([model], getattr(stats, name))
            yield counter
        for name, about in STORED.items():
            counter = CounterMetricFamily(f"cutaway_prefix_store_{name}_pages", about, labels=["model"])
            for model, stats in found.items():
                counter.add_metric([model], getattr(stats.stored, name))
            yield counter


class _Tenants(Collector):
    def __init__(self, keys: KeyRing) -> None:
        self.keys = keys

    def collect(self) -> Iterator[CounterMetricFamily]:
        for name, about in USED.items():
            counter = CounterMetricFamily(f"cutaway_key_{name}", about, labels=["key"])
            for tenant in self.keys.tenants:
                counter.add_metric([tenant.name], tenant.used[name])
            yield counter
