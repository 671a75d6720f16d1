"""Promises of the parts of `chorus bench`: arrivals, percentiles, rows drawn, sums, what metrics mean, the report."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections import Counter
from typing import Any, cast

import pytest

from app.cli.bench import load
from app.cli.bench.load import Budget, arrivals
from app.cli.bench.outcomes import Outcome, Run, percentile, spread, summarise
from app.cli.bench.report import show
from app.cli.bench.service import parse_sums, work_between
from app.cli.bench.wire import Reply
from app.cli.bench.workload import Target, Workload, parse_weights, rows_for
from app.cli.errors import CliError
from app.cli.output import Output
from app.engine import EngineStats
from app.telemetry import Metrics
from app.telemetry.metrics import engine_readings, engine_tallies

MOOD = Target("mood", 3.0, ("text",), streams=False)
STORY = Target("story@2", 1.0, ("title", "hero"), streams=True)


def outcome(seconds: float, *codes: str | None, refs: tuple[str, ...] = ("a",), **fields: Any) -> Outcome:
    return Outcome(refs, 10.0, 10.0, 10.0 + seconds, codes=codes or (None,), **fields)


def test_arrivals_of_a_rate_come_that_often_and_as_unevenly_as_chance() -> None:
    at = list(itertools.islice(arrivals(50.0, random.Random(1)), 20_000))
    gaps = [late - early for early, late in itertools.pairwise([0.0, *at])]
    mean = sum(gaps) / len(gaps)
    deviation = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert mean == pytest.approx(1 / 50, rel=0.03)
    assert deviation == pytest.approx(mean, rel=0.05)  # an exponential's is its mean
    assert at == list(itertools.islice(arrivals(50.0, random.Random(1)), 20_000))


@pytest.mark.parametrize(
    ("values", "share", "found"),
    [([7.0], 0.99, 7.0), ([1.0, 2.0], 0.5, 1.5), ([float(i) for i in range(101)], 0.99, 99.0), ([1.0, 3.0], 1.0, 3.0)],
)
def test_percentile_lies_between_its_neighbours(values: list[float], share: float, found: float) -> None:
    assert percentile(values, share) == pytest.approx(found)


def test_spread_of_nothing_is_nothing() -> None:
    assert spread([]) is None
    assert spread([3.0, 1.0, 2.0]) == {"n": 3, "mean": 2.0, "p50": 2.0, "p90": 2.8, "p99": 2.98, "max": 3.0}


def test_budget_of_requests_is_taken_to_the_last_and_of_seconds_to_the_end() -> None:
    counted = Budget(seconds=None, requests=2)
    assert [counted.take() for _ in range(3)] == [True, True, False]
    over = Budget(seconds=0.0, requests=None)
    assert not over.take()
    assert over.left_s() <= 0


def test_workload_draws_tasks_by_weight_and_repeats_itself_with_the_same_seed() -> None:
    def asked(seed: int) -> list[bytes]:
        return [shot.body for shot in itertools.islice(Workload([MOOD, STORY], words=5, seed=seed), 200)]

    assert asked(1) == asked(1) != asked(2)
    refs = Counter(shot.refs[0] for shot in itertools.islice(Workload([MOOD, STORY]), 4000))
    assert refs["mood"] / 4000 == pytest.approx(0.75, abs=0.03)


def test_workload_makes_up_every_field_and_streams_only_what_has_text_to_stream() -> None:
    workload = Workload([MOOD, STORY], words=5, options={"max_tokens": 3})
    mood, story = workload.one(MOOD), workload.one(STORY)
    assert (mood.stream, story.stream, story.path) == (False, True, "/v1/tasks/story@2/generate")
    body = json.loads(story.body)
    assert body["stream"] is True
    assert body["max_tokens"] == 3
    assert {name: len(text.split()) for name, text in body["input"].items()} == {"title": 5, "hero": 5}


def test_workload_of_several_rows_mixes_tasks_in_one_request() -> None:
    shot = next(Workload([MOOD, STORY], rows=16, options={"max_tokens": 3}))
    rows = json.loads(shot.body)["requests"]
    assert shot.path == "/v1/generate"
    assert tuple(row["task"] for row in rows) == shot.refs
    assert set(shot.refs) == {"mood", "story@2"}
    assert all(row["max_tokens"] == 3 for row in rows)


def test_workload_of_given_rows_asks_each_before_any_again() -> None:
    rows = [{"text": str(i)} for i in range(10)]
    workload = Workload([Target("mood", 1.0, ("text",), streams=False, rows=rows)])
    texts = [json.loads(shot.body)["input"]["text"] for shot in itertools.islice(workload, 20)]
    assert sorted(texts[:10]) == sorted(texts[10:]) == [str(i) for i in range(10)]


def test_weights_are_read_and_nonsense_is_refused() -> None:
    assert parse_weights(["nli=3", "topic:canary"]) == {"nli": 3.0, "topic:canary": 1.0}
    for wrong in ("nli=0", "nli=x", "=2", "nli=inf", "nli=nan"):
        with pytest.raises(CliError, match="TASK=WEIGHT"):
            parse_weights([wrong])
    with pytest.raises(CliError, match="twice"):
        parse_weights(["nli", "nli=2"])


def test_rows_are_those_that_have_all_fields_and_no_more_than_these() -> None:
    rows = [(1, {"title": "t", "label": "x"}), (2, {"title": "t", "hero": "h", "label": "x"})]
    assert rows_for("story", ("title", "hero"), rows) == [{"title": "t", "hero": "h"}]
    with pytest.raises(CliError, match="row 1 has no text in the field `villain`, which story reads") as refused:
        rows_for("story", ("title", "villain"), rows)
    assert "title, label" in str(refused.value.fix)


def test_summary_counts_rows_errors_and_latency_from_when_a_request_was_due() -> None:
    late = Outcome(("a",), 10.0, 10.5, 12.0, codes=(None,), first=11.0, tokens=4, gaps=[0.1, 0.3])
    mixed = outcome(1.0, None, "too_long", refs=("a", "b"), tokens=2)
    refused = outcome(0.1, "overloaded", refs=("b",), retry_after_s=7.0)
    found = summarise(Run([late, mixed, refused], cpu_s=0.5, waits=1, waited_s=2.0))
    assert found["elapsed_s"] == 2.0
    assert found["requests"] == {"sent": 3, "answered": 1, "per_s": 0.5}
    assert found["rows"] == {"sent": 4, "answered": 2, "per_s": 1.0}
    assert found["generated_tokens"] == {"total": 6, "per_s": 3.0}
    assert found["latency_s"]["end_to_end"]["p50"] == 2.0
    assert found["latency_s"]["first_token"]["p50"] == 1.0
    assert found["latency_s"]["inter_token"]["p50"] == pytest.approx(0.2)
    assert found["errors"] == {"too_long": 1, "overloaded": 1}
    assert found["retry_after"] == {"asked": 1, "obeyed": 1, "waited_s": 2.0}
    assert (found["late_starts"], found["load_generator"]["cpu_share"]) == (1, 0.25)
    assert [(one["task"], one["rows"], one["failed"]) for one in found["tasks"]] == [("a", 2, 0), ("b", 2, 2)]


def readings(stats: EngineStats, metrics: Metrics) -> dict[str, float]:
    metrics.observe("engine", lambda: engine_readings(stats))
    metrics.observe_tallies("engine", lambda: engine_tallies(stats))
    return parse_sums(metrics.exposition().decode())


def test_work_between_two_readings_is_the_work_of_these_steps_alone() -> None:
    before, after = EngineStats(steps_decode=7, prompt_tokens=50), EngineStats(steps_decode=9, prompt_tokens=140)
    after.padding_tokens, after.prefix_hits, after.prefix_misses, after.steps_prefill = 10, 3, 1, 3
    before.decode_rows.add(1)
    for rows in (1, 2, 6):
        after.decode_rows.add(rows)
    after.decode_prompts.add(2)
    after.queue_seconds.add(0.25)
    answered = Metrics()
    answered.rows.labels("a", "stop").inc(2)
    answered.rows.labels("b", "label").inc(3)
    found = work_between(readings(before, Metrics()), readings(after, answered))
    assert found is not None
    assert found["decode"] == {"steps": 2, "rows_per_step": 4.0, "prompts_per_step": 2.0}
    assert found["prefill"] == {"steps": 3, "rows_per_step": None, "prompts_per_step": None}
    assert (found["prompt_tokens_per_prefill_step"], found["padding_share"]) == (30.0, 0.1)
    assert (found["prefix_cache_hit_rate"], found["queue_time_mean_s"]) == (0.75, 0.25)
    assert found["rows_answered"] == 5


def test_work_is_unknown_where_a_counter_ran_backwards_or_none_was_read() -> None:
    early, later = (readings(EngineStats(steps_decode=count), Metrics()) for count in (3, 9))
    assert work_between(later, early) is None
    assert work_between(None, later) is None


def test_report_fits_80_columns_and_says_what_went_wrong(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    names = [f"a-rather-long-name-{i}" for i in range(20)]
    outcomes = [
        outcome(12.3456 * i, refs=(name,), first=11.0, gaps=[0.5], tokens=123_456) for i, name in enumerate(names, 1)
    ]
    outcomes += [outcome(0.1, "overloaded", refs=("b",), retry_after_s=7.0)] * 3
    stats = EngineStats(steps_prefill=123_456, prompt_tokens=10**7, padding_tokens=10**6)
    stats.decode_rows.add(31)
    document = {
        **summarise(Run(outcomes, cpu_s=400.0)),
        "url": "http://127.0.0.1:8000",
        "backbone": {"name": "Qwen2.5-0.5B-Instruct", "dtype": "bfloat16", "device": "cuda:0"},
        "load": {
            "clients": None,
            "rate_per_s": 2.5,
            "rows_per_request": 1,
            "stream": True,
            "tasks": dict.fromkeys(names),
        },
        "service": work_between(readings(EngineStats(), Metrics()), readings(stats, Metrics())),
        "other_rows": 5,
    }
    show(document, Output())
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    for part in (
        *("20 tasks, open loop of 2.5 requests a second", "first token", "padding", "9.1%", "and 9 more tasks"),
        *(
            "Rows failed: overloaded 3",
            "Retry-After: sent with 3 answers",
            "Late starts: 0 of 23",
            "Others asked as well",
        ),
        *("Load generator: 162% of a core", "ask from another machine"),
    ):
        assert part in text
    document["service"] = None
    show(document, Output())
    assert "The engine's side is unknown" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("output", "code"),
    [
        ({"finish_reason": "length"}, None),
        ({"finish_reason": "label"}, None),
        ({"finish_reason": "drain"}, "drain"),
        ({"finish_reason": "timeout"}, "timeout"),
        ({"finish_reason": "drain", "error": {"code": "cut_off"}}, "cut_off"),
    ],
)
def test_text_that_was_cut_short_has_failed(output: dict[str, Any], code: str | None) -> None:
    whole, streamed = (Outcome(("a",), 0.0, 0.0) for _ in range(2))
    reply = Reply(b"HTTP/1.1 200 OK\r\n\r\n", cast(asyncio.StreamReader, None))
    load._read(reply, json.dumps({"outputs": [output]}).encode(), whole)
    load._settle(output, streamed)
    assert (whole.codes, streamed.codes) == ((code,), (code,))
