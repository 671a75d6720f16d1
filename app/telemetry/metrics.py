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
LATENCY_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
LOAD_BUCKETS_S = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10)

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
        registry = self.registry = CollectorRegistry(auto_describe=True)
        self.http_requests = Counter(
            PREFIX + "http_requests",
            "HTTP requests answered, by route template, method and status.",
            ["route", "method", "status"],
            registry=registry,
        )
        self.http_seconds = Histogram(
            PREFIX + "http_request_duration_seconds",
            "Time from the request's head to the last byte of its answer.",
            ["route"],
            buckets=LATENCY_BUCKETS_S,
            registry=registry,
        )
        self.http_in_flight = Gauge(
            PREFIX + "http_requests_in_flight", "HTTP requests being answered now.", registry=registry
        )
        self.rows = Counter(
            PREFIX + "request_success",
            "Rows answered, by task and finish reason.",
            ["task", "finished_reason"],
            registry=registry,
        )
        self.row_failures = Counter(
            PREFIX + "request_failure", "Rows that ended in an error, by its code.", ["code"], registry=registry
        )
        self.row_seconds = Histogram(
            PREFIX + "e2e_request_latency_seconds",
            "Time from a row's admission to its answer.",
            ["task"],
            buckets=LATENCY_BUCKETS_S,
            registry=registry,
        )
        self.first_token_seconds = Histogram(
            PREFIX + "time_to_first_token_seconds",
            "Time from a streamed row's admission to its first event.",
            ["task"],
            buckets=LATENCY_BUCKETS_S,
            registry=registry,
        )
        self.prompt_tokens = Counter(
            PREFIX + "prompt_tokens", "Text tokens read, by task.", ["task"], registry=registry
        )
        self.virtual_tokens = Counter(
            PREFIX + "virtual_tokens", "Prompt vectors read, by task.", ["task"], registry=registry
        )
        self.generation_tokens = Counter(
            PREFIX + "generation_tokens", "Tokens generated, by task.", ["task"], registry=registry
        )
        self.prompt_load_seconds = Histogram(
            PREFIX + "prompt_load_duration_seconds",
            "Time to read, verify and replay a version before it serves.",
            buckets=LOAD_BUCKETS_S,
            registry=registry,
        )
        self.prompt_load_failures = Counter(
            PREFIX + "prompt_load_failure",
            "Versions refused by verification, by error code.",
            ["code"],
            registry=registry,
        )

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
