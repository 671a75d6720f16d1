"""Every metric of the service: its name, unit and labels, in one place. Names follow vLLM's with the prefix `chorus_`.

One `Metrics` belongs to one application, so two applications in one process do not share counters. A label `task`
takes registered names only, and a bounded number of them: what a caller types never becomes a label.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from app.telemetry.tally import SECONDS, Tally

PREFIX = "chorus_"

MOST_TASKS = 1000
"""Tasks that have series of their own, some sixty each; those that come after share the name `OTHER`."""

OTHER = "(other)"

Readings = Mapping[str, float]
Tallies = Mapping[str, Mapping[str, Tally]]

# Fields of the engine's statistics, and the names they are exported under.
ENGINE: Mapping[str, str] = {
    "running": "num_requests_running",
    "waiting": "num_requests_waiting",
    "waiting_tokens": "num_tokens_waiting",
    "steps_prefill": "engine_prefill_steps_total",
    "steps_decode": "engine_decode_steps_total",
    "prompt_tokens": "engine_prompt_tokens_total",
    "generated_tokens": "engine_generated_tokens_total",
    "padding_tokens": "engine_padding_tokens_total",
    "prefix_hits": "prefix_cache_hits_total",
    "prefix_queries": "prefix_cache_queries_total",
    "prefix_evictions": "prefix_cache_evictions_total",
    "prefix_bytes": "prefix_cache_bytes",
    "resident_prompts": "prompts_resident",
    "resident_bytes": "prompts_resident_bytes",
    "threads": "engine_threads",
}

# The engine's histograms: exported name, then phase (empty where there is none) and field of its statistics.
ENGINE_TALLIES: Mapping[str, Mapping[str, str]] = {
    "batch_rows": {"prefill": "prefill_rows", "decode": "decode_rows"},
    "batch_prompts": {"prefill": "prefill_prompts", "decode": "decode_prompts"},
    "request_queue_time_seconds": {"": "queue_seconds"},
    "request_prefill_time_seconds": {"": "prefill_seconds"},
    "request_decode_time_seconds": {"": "decode_seconds"},
    "inter_token_latency_seconds": {"": "inter_token_seconds"},
}


def engine_readings(stats: object) -> dict[str, float]:
    """The engine's numbers under their exported names; a field that an engine does not keep is left out."""
    return {name: float(getattr(stats, field)) for field, name in ENGINE.items() if hasattr(stats, field)}


def engine_tallies(stats: object) -> dict[str, dict[str, Tally]]:
    """The engine's histograms: exported name → phase → tally."""
    return {
        name: {phase: getattr(stats, field) for phase, field in fields.items()}
        for name, fields in ENGINE_TALLIES.items()
    }


def process_readings() -> dict[str, float]:
    """What this process has going; for the thread of its event loop. Either number that only grows is a leak."""
    return {"asyncio_tasks": float(len(asyncio.all_tasks())), "process_threads": float(threading.active_count())}


class Metrics:
    """The counters that code moves itself. Gauges of the engine and the registry are read at scrape time: `observe`."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=True)
        self._tasks: set[str] = set()
        counter, times = self._counter, self._times
        self.http_requests = counter("http_requests", "HTTP requests answered.", "route", "method", "status")
        self.http_seconds = times("http_request_duration_seconds", "From a head to the last byte.", "route")
        self.http_in_flight = Gauge(
            PREFIX + "http_requests_in_flight", "HTTP requests being answered now.", registry=self.registry
        )
        self.rows = counter("request_success", "Rows answered.", "task", "finished_reason")
        self.abstained = counter("request_abstained", "Rows whose label was under the task's threshold.", "task")
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
        return Histogram(PREFIX + name, help_text, labels, buckets=SECONDS, registry=self.registry)

    def task_label(self, name: str) -> str:
        """What a registered task is called in labels."""
        if name not in self._tasks:
            if len(self._tasks) >= MOST_TASKS:
                return OTHER
            self._tasks.add(name)
        return name

    def forget_tasks(self, names: Iterable[str]) -> None:
        """Drop the series of tasks that are no more, which makes room for others."""
        for name in self._tasks.intersection(names):
            self._tasks.discard(name)
            for one in (
                *(self.rows, self.abstained, self.row_seconds, self.first_token_seconds),
                *(self.prompt_tokens, self.virtual_tokens, self.generation_tokens),
            ):
                one.remove_by_labels({"task": name})

    def observe(self, kind: str, read: Callable[[], Readings]) -> None:
        """Export what `read()` returns at each scrape: names ending in `_total` as counters, all others as gauges."""
        self.registry.register(_Observed(kind, read))

    def observe_tallies(self, kind: str, read: Callable[[], Tallies]) -> None:
        """Export what `read()` returns at each scrape as histograms; a phase that has a name is their label."""
        self.registry.register(_ObservedTallies(kind, read))

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
            help_text = _help(self._kind, name)
            if name.endswith("_total"):
                yield CounterMetricFamily(PREFIX + name, help_text, value=value)
            else:
                yield GaugeMetricFamily(PREFIX + name, help_text, value=value)


class _ObservedTallies:
    """The same for histograms."""

    def __init__(self, kind: str, read: Callable[[], Tallies]) -> None:
        self._kind = kind
        self._read = read

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        for name, phases in self._read().items():
            labels = [] if "" in phases else ["phase"]
            family = HistogramMetricFamily(PREFIX + name, _help(self._kind, name), labels=labels)
            for phase, tally in phases.items():
                family.add_metric([phase] if phase else [], tally.buckets(), tally.total)
            yield family


def _help(kind: str, name: str) -> str:
    return f"{kind}: {name.removesuffix('_total').replace('_', ' ')}"
