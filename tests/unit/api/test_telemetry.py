"""Logs are one line each and hold no more than they were given; every metric is documented."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.api.connections import Connections
from app.engine import EngineStats
from app.telemetry import Metrics, configure_logging, request_id
from app.telemetry.metrics import ENGINE, MOST_TASKS, OTHER, engine_readings, engine_tallies, process_readings
from app.telemetry.tally import Tally
from app.training.census import NAMES
from prompt_store.breaker import Breaker

DOCS = Path(__file__).resolve().parents[3] / "docs" / "http-api.md"


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield io.StringIO()
    root.handlers[:] = handlers
    root.setLevel(level)


def test_json_line_has_its_facts_and_the_request_id(stream: io.StringIO) -> None:
    configure_logging("info", "json", stream)
    token = request_id.set("req_1")
    logging.getLogger("app.x").info("loaded", extra={"version": "a@1", "seconds": 0.5})
    request_id.reset(token)
    line = json.loads(stream.getvalue())
    assert (line["message"], line["version"], line["seconds"]) == ("loaded", "a@1", 0.5)
    assert (line["request_id"], line["level"], line["logger"]) == ("req_1", "info", "app.x")


@pytest.mark.parametrize("form", ["json", "text"])
def test_no_value_can_break_its_line_or_colour_a_terminal(stream: io.StringIO, form: str) -> None:
    configure_logging("info", form, stream)  # type: ignore[arg-type]
    logging.getLogger("app.x").info("said", extra={"name_": "a\r\nINFO forged\x1b[31m\u2028b\ud800"})
    text = stream.getvalue()
    assert text.count("\n") == 1
    assert "\x1b" not in text
    assert "\r" not in text
    text.encode()


def test_exception_is_logged_with_its_place(stream: io.StringIO) -> None:
    configure_logging("info", "json", stream)
    try:
        raise ValueError("broken")
    except ValueError:
        logging.getLogger("app.x").exception("failed")
    assert "ValueError: broken" in json.loads(stream.getvalue())["exception"]


def test_level_is_obeyed(stream: io.StringIO) -> None:
    configure_logging("warning", "text", stream)
    logging.getLogger("app.x").info("quiet")
    assert stream.getvalue() == ""


@pytest.mark.anyio
async def test_tasks_and_threads_are_those_that_run_now() -> None:
    ended, before = threading.Event(), process_readings()
    task = asyncio.create_task(asyncio.sleep(60))
    thread = threading.Thread(target=ended.wait)
    thread.start()
    during = process_readings()
    task.cancel()
    ended.set()
    thread.join()
    await asyncio.wait([task])
    assert [during[name] - before[name] for name in ("asyncio_tasks", "process_threads")] == [1, 1]
    assert process_readings() == before


def test_every_metric_is_documented_and_every_documented_metric_exists() -> None:
    metrics = Metrics()
    metrics.observe("process", lambda: {"asyncio_tasks": 0.0, "process_threads": 0.0})
    metrics.observe("engine", lambda: engine_readings(EngineStats()))
    metrics.observe_tallies("engine", lambda: engine_tallies(EngineStats()))
    registry = {"registry_epoch", "registry_degraded", "registry_tasks", "registry_versions"}
    registry |= {"registry_full_reads_total", "prompts_loaded", "prompts_refused"}
    registry |= {"prompts_loaded_bytes", "prompts_evicted_total"}
    registry |= {"registry_blobs_scrubbed_total", "registry_blobs_damaged"}
    metrics.observe("registry", lambda: dict.fromkeys(sorted(registry), 0.0))
    metrics.observe("training", lambda: dict.fromkeys(NAMES, 0.0))
    metrics.observe("redis", Breaker().readings)
    metrics.observe("http", Connections(1).readings)
    exported = {family.name + ("_total" if family.type == "counter" else "") for family in metrics.registry.collect()}
    rows = [line for line in DOCS.read_text().splitlines() if line.startswith("| `chorus_")]
    documented = {name.strip("` ") for row in rows for name in row.split("|")[1].split(",")}
    assert exported == documented


def test_names_of_engine_statistics_are_fields_of_the_engine() -> None:
    stats = EngineStats()
    assert all(hasattr(stats, name) for name in ENGINE)


def test_tally_of_an_engine_is_exported_as_a_histogram_by_phase() -> None:
    metrics, stats = Metrics(), EngineStats()
    metrics.observe_tallies("engine", lambda: engine_tallies(stats))
    for rows in (1, 3, 3, 5000):
        stats.decode_rows.add(rows)
    text = metrics.exposition().decode()
    assert 'chorus_batch_rows_bucket{le="1.0",phase="decode"} 1.0' in text
    assert 'chorus_batch_rows_bucket{le="4.0",phase="decode"} 3.0' in text
    assert 'chorus_batch_rows_bucket{le="+Inf",phase="decode"} 4.0' in text
    assert 'chorus_batch_rows_sum{phase="decode"} 5007.0' in text
    assert 'chorus_batch_rows_count{phase="prefill"} 0.0' in text


def test_tally_counts_a_value_on_a_bound_as_within_it() -> None:
    tally = Tally((1, 2))
    tally.add(1)
    tally.add(2)
    assert tally.buckets() == [("1.0", 1.0), ("2.0", 2.0), ("+Inf", 2.0)]
    assert (tally.count, tally.total) == (2, 3.0)


def test_two_applications_do_not_share_counters() -> None:
    first, second = Metrics(), Metrics()
    first.row_failures.labels("x").inc()
    assert b'code="x"' in first.exposition()
    assert b'code="x"' not in second.exposition()


def test_tasks_beyond_the_bound_share_a_label_until_there_is_room() -> None:
    metrics = Metrics()
    for number in range(MOST_TASKS + 50):
        metrics.rows.labels(metrics.task_label(f"t{number}"), "stop").inc()
    text = metrics.exposition().decode()
    assert f'chorus_request_success_total{{finished_reason="stop",task="{OTHER}"}} 50.0' in text
    assert text.count("chorus_request_success_total{") == MOST_TASKS + 1
    assert metrics.task_label("t3") == "t3"
    metrics.forget_tasks(["t3", "never seen"])
    assert metrics.task_label("new") == "new"
    assert metrics.task_label("t3") == OTHER


def test_task_that_is_gone_leaves_no_series() -> None:
    metrics = Metrics()
    for name in ("gone", "kept"):
        label = metrics.task_label(name)
        metrics.rows.labels(label, "stop").inc()
        metrics.rows.labels(label, "length").inc()
        metrics.row_seconds.labels(label).observe(1)
        metrics.first_token_seconds.labels(label).observe(1)
        for one in (metrics.abstained, metrics.prompt_tokens, metrics.virtual_tokens, metrics.generation_tokens):
            one.labels(label).inc()
    metrics.forget_tasks(["gone"])
    text = metrics.exposition().decode()
    assert 'task="gone"' not in text
    assert text.count('finished_reason="stop",task="kept"} 1.0') == 1
    samples = [sample for family in metrics.registry.collect() for sample in family.samples]
    labelled = {sample.name for sample in samples if sample.labels.get("task") == "kept"}
    assert len({re.sub("_(bucket|sum|count|total|created)$", "", name) for name in labelled}) == 7
