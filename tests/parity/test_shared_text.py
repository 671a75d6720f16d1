"""A text that the rows of a group begin with is computed once on runners that pad, and nobody's answer changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from app.backbone import Backbone, LoadedPrompt
from app.engine import Engine, EngineConfig, Event, Request, RowRequest, Sampling
from app.engine.intake import common_text
from tests.architectures import build_backbone
from tests.engines import row_of, run, tokens_of
from tests.prompts import TEXTS, WORDS, make_prompt

PADDED = ["gpt2", "opt", "neox", "gemma3", "mistral_window", "dynamic_rope"]
SUFFIXES = ("{text}<prompt:6>", "{text} It was<prompt:4>", "{text}<prompt:9>", "{text}\nSo:<prompt:7>", "{text} Yes")
TEXT = " ".join(TEXTS)  # longer than the windows
TOLERANCE = 1e-4


def fan_out(backbone: Backbone) -> tuple[list[LoadedPrompt], list[RowRequest]]:
    """Suffix prompts and a hand-written one over one text; labels, greedy and sampled."""
    ways = [None, Sampling(6), Sampling(9, temperature=0.9, seed=3), None, Sampling(4)]
    prompts = [
        make_prompt(backbone, template, words=None if way else WORDS, seed=seed)
        for seed, (template, way) in enumerate(zip(SUFFIXES, ways, strict=True))
    ]
    return prompts, [row_of(backbone, prompt, TEXT, way) for prompt, way in zip(prompts, ways, strict=True)]


def engine_with(backbone: Backbone, prompts: Sequence[LoadedPrompt], **options: Any) -> Engine:
    engine = Engine(backbone, EngineConfig(**{"max_rows": 8, "max_context": 128, **options}))
    for prompt in prompts:
        if prompt.vectors is not None:
            engine.load(prompt.digest, prompt.vectors)
    return engine


def alone(engine: Engine, rows: Sequence[RowRequest]) -> list[list[Event]]:
    """Each row's events from a run of its own."""
    found = []
    for i, row in enumerate(rows):
        engine.submit(Request(f"alone-{i}", (row,), 1e9))
        found.append(run(engine)[f"alone-{i}"])
    return found


def check(got: Sequence[Event], wanted: Sequence[Event]) -> None:
    assert got[-1].finish == wanted[-1].finish
    assert tokens_of([event._replace(row=0) for event in got]) == tokens_of(wanted)
    if wanted[-1].scores is not None:
        assert got[-1].scores == pytest.approx(wanted[-1].scores, abs=TOLERANCE)


@pytest.mark.parametrize("name", PADDED)
def test_rows_over_one_text_compute_it_once_and_answer_as_alone(name: str) -> None:
    backbone = build_backbone(name)
    prompts, rows = fan_out(backbone)
    shared = common_text(rows)
    engine = engine_with(backbone, prompts)
    assert engine.runner.name == "fast"
    wanted = alone(engine, rows)
    before = engine.stats().prompt_tokens
    assert before == sum(row.new_tokens for row in rows)
    assert engine.stats().padding_tokens == 0
    engine.submit(Request("together", tuple(rows), 1e9, shared=shared))
    events = run(engine)["together"]
    for i in range(len(rows)):
        check([event for event in events if event.row == i], wanted[i])
    spent, padding = engine.stats().prompt_tokens - before, engine.stats().padding_tokens
    assert spent == shared + sum(row.new_tokens - shared for row in rows)
    assert padding <= max(0.2 * (spent + padding), shared)


@pytest.mark.parametrize("name", ["gpt2", "mistral_window"])
def test_rows_over_one_text_beside_others_in_their_batch_answer_as_alone(name: str) -> None:
    backbone = build_backbone(name)
    prompts, rows = fan_out(backbone)
    others = [row_of(backbone, prompts[0], "dull", None), row_of(backbone, prompts[4], "not bad at all", Sampling(5))]
    engine = engine_with(backbone, prompts, max_rows=16, max_padding=0.9)
    wanted, wanted_others = alone(engine, rows), alone(engine, others)
    steps = engine.stats().steps_prefill
    engine.submit(Request("other-0", (others[0],), 1e9))
    engine.submit(Request("together", tuple(rows), 1e9, shared=common_text(rows)))
    engine.submit(Request("other-1", (others[1],), 1e9))
    events = run(engine)
    assert engine.stats().steps_prefill == steps + 1
    for i in range(len(rows)):
        check([event for event in events["together"] if event.row == i], wanted[i])
    for i in range(len(others)):
        check(events[f"other-{i}"], wanted_others[i])


@pytest.mark.parametrize("name", ["gpt2", "opt"])
def test_prompt_of_nan_over_a_shared_text_fails_alone(name: str) -> None:
    backbone = build_backbone(name)
    prompts, rows = fan_out(backbone)
    wanted = alone(engine_with(backbone, prompts), rows)
    engine = engine_with(backbone, prompts)
    engine.prompts.vectors(prompts[0].digest).fill_(torch.nan)  # type: ignore[union-attr]
    engine.submit(Request("together", tuple(rows), 1e9, shared=common_text(rows)))
    events = run(engine)["together"]
    assert [event.finish for event in events if event.row == 0] == ["error"]
    for i in range(1, len(rows)):
        check([event for event in events if event.row == i], wanted[i])


def test_memory_that_runs_out_over_a_shared_text_costs_passes_and_no_answer() -> None:
    backbone = build_backbone("gpt2")
    prompts, rows = fan_out(backbone)
    wanted = alone(engine_with(backbone, prompts), rows)
    engine = engine_with(backbone, prompts)
    honest, sizes = engine.runner.prefill, []

    def prefill(start: int, items: Any) -> Any:
        sizes.append(len(items))
        if len(items) > 2:
            raise torch.OutOfMemoryError("planted")
        return honest(start, items)

    engine.runner.prefill = prefill  # type: ignore[method-assign]
    engine.submit(Request("together", tuple(rows), 1e9, shared=common_text(rows)))
    events = run(engine)["together"]
    assert sizes == [5, 2, 3, 1, 2]
    for i in range(len(rows)):
        check([event for event in events if event.row == i], wanted[i])


def test_text_too_short_to_be_worth_a_pass_is_computed_by_each_row() -> None:
    backbone = build_backbone("gpt2")
    prompts, _ = fan_out(backbone)
    rows = [row_of(backbone, prompt, "dull film", Sampling(2)) for prompt in prompts]
    engine = engine_with(backbone, prompts)
    shared = common_text(rows)
    assert shared > 0
    engine.submit(Request("together", tuple(rows), 1e9, shared=shared))
    run(engine)
    assert engine.stats().prompt_tokens == sum(row.new_tokens for row in rows)


def test_coupled_rows_over_one_text_write_what_they_write_without_sharing() -> None:
    backbone = build_backbone("opt")
    prompts, _ = fan_out(backbone)
    rows = tuple(row_of(backbone, prompt, TEXT, Sampling(8)) for prompt in prompts)
    engine = engine_with(backbone, prompts)
    engine.submit(Request("apart", rows, 1e9, coupled=True))
    before = engine.stats().prompt_tokens
    wanted = run(engine)["apart"]
    middle = engine.stats().prompt_tokens
    engine.submit(Request("together", rows, 1e9, coupled=True, shared=common_text(rows)))
    got = run(engine)["together"]
    assert tokens_of(got) == tokens_of(wanted)
    assert engine.stats().prompt_tokens - middle == middle - before - 4 * common_text(rows)
