"""Every metric of the service: its name, unit and labels, in one place. Names follow vLLM's with the prefix `chorus_`.

One `Metrics` belongs to one application, so two applications in one process do not share counters. A label `task`
takes registered names only: what a caller types never becomes a label.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST

PREFIX = "chorus_"
BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)

Readings = Mapping[str, float]

# Fields of the engine's statistics, and the names they are exported under.
ENGINE: Mapping[str, str] = {
    "running": "num_requests_running",
    "waiting": "num_requests_waiting",
    "steps_prefill": "engine_prefill_steps_total",
    "steps_decode": "engine_decode_steps_total",
    "prompt_tokens": "engine_prompt_tokens_total",
    "generated_tokens": "engine_generated_tokens_total",
    "padding_tokens": "engine_padding_tokens_total",
    "prefix_hits": "prefix_cache_hits_total",
    "prefix_misses": "prefix_cache_misses_total",
    "prefix_evictions": "prefix_cache_evictions_total",
    "prefix_bytes": "prefix_cache_bytes",
    "resident_prompts": "prompts_resident",
    "last_batch_rows": "batch_rows",
    "last_batch_prompts": "batch_prompts",
}


def engine_readings(stats: object) -> dict[str, float]:
    """The engine's statistics under their exported names; a field that an engine does not keep is left out."""
    return {name: float(getattr(stats, field)) for field, name in ENGINE.items() if hasattr(stats, field)}


class Metrics:
    """The counters that code moves itself. Gauges of the engine and the registry are read at scrape time: `observe`."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=True)
        counter, times = self._counter, self._times
        self.http_requests = counter("http_requests", "HTTP requests answered.", "route", "method", "status")
        self.http_seconds = times("http_request_duration_seconds", "From a head to the last byte.", "route")
        self.http_in_flight = Gauge(
            PREFIX + "http_requests_in_flight", "HTTP requests being answered now.", registry=self.registry
        )
        self.rows = counter("request_success", "Rows answered.", "task", "finished_reason")
        self.row_failures = counter("request_failure", "Rows that ended in an error.", "code")
        self.row_seconds = times("e2e_request_latency_seconds", "From a row's admission to its answer.", "task")
        self.first_token_seconds = times("time_to_first_token_seconds", "To a streamed row's first event.", "task")
        self.prompt_tokens = counter("prompt_tokens", "Text tokens read.", "task")
        self.virtual_tokens = counter("virtual_tokens", "Prompt vectors read.", "task")
        self.generation_tokens = counter("generation_tokens", "Tokens generated.", "task")
        self.prompt_load_seconds = times("prompt_load_duration_seconds", "To read, verify and replay a version.")
        self.prompt_load_failures = counter("prompt_load_failure", "Versions refused by verification.", "code")

    def _counter(self, name: str, help_text: str, *labels: str) -> Counter:
        return Counter(PREFIX + name, help_text, labels, registry=self.registry)

    def _times(self, name: str, help_text: str, *labels: str) -> Histogram:
        return Histogram(PREFIX + name, help_text, labels, buckets=BUCKETS_S, registry=self.registry)

    def observe(self, kind: str, read: Callable[[], Readings]) -> None:
        """Export what `read()` returns at each scrape: names ending in `_total` as counters, all others as gauges."""
        self.registry.register(_Observed(kind, read))

    def exposition(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self.registry)


class _Observed:
    """A prometheus-client collector of readings that live elsewhere."""

    def __init__(self, kind: str, read: Callable[[], Readings]) -> None:
        self._kind = kind
        self._read = read

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        for name, value in self._read().items():
            help_text = f"{self._kind}: {name.removesuffix('_total').replace('_', ' ')}"
            if name.endswith("_total"):
                yield CounterMetricFamily(PREFIX + name, help_text, value=value)
            else:
                yield GaugeMetricFamily(PREFIX + name, help_text, value=value)
