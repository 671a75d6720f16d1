"""A row's answer does not depend on who shares its batch: mixed batch = the row alone = the model's own `generate`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cache

import pytest
import torch

from app.backbone import Backbone, LoadedPrompt, encode_row
from app.backbone.layout import embed, lay_out
from app.engine import Engine, EngineConfig, Event, Request, Sampling
from tests.architectures import build_backbone
from tests.prompts import TEMPLATES, TEXTS, WORDS, make_prompt

FAST = ["llama", "qwen2", "qwen3", "gpt2", "opt", "neox", "mistral_window", "gemma3", "dynamic_rope"]
REFERENCE = ["bloom"]
TOLERANCE = 1e-4
NEW_TOKENS = 6


def requests_for(backbone: Backbone) -> list[tuple[LoadedPrompt, Request]]:
    """Every placement × generation and labels × texts of unequal length."""
    made = []
    for t, template in enumerate(TEMPLATES):
        for words in (None, WORDS):
            prompt = make_prompt(backbone, template, words=words, seed=t)
            for text in TEXTS[t % 2 :: 2]:
                row = encode_row(backbone.tokenizer, prompt.template, prompt.bos, {"text": text})
                digest = prompt.digest if prompt.vectors is not None else None
                sampling = None if words else Sampling(NEW_TOKENS, temperature=0.8 * (t % 2), top_k=50, seed=t)
                made.append(
                    (
                        prompt,
                        Request.single(
                            f"{len(made)}", row, digest, time.monotonic() + 600, sampling, prompt.verbalizer
                        ),
                    )
                )
    return made


def run(engine: Engine, requests: Sequence[tuple[LoadedPrompt, Request]]) -> dict[str, list[Event]]:
    events: dict[str, list[Event]] = {request.id: [] for _, request in requests}
    for prompt, request in requests:
        if prompt.vectors is not None:
            engine.load(prompt.digest, prompt.vectors)
        engine.submit(request)
    while not engine.idle:
        for event in engine.step():
            events[event.request_id].append(event)
        engine.check_integrity()
    return events


def tokens_of(events: list[Event]) -> list[int]:
    return [event.token for event in events if event.token is not None]


@cache
def alone_without_a_cache(name: str) -> dict[str, list[Event]]:
    """Each row's events from a run of its own, its prompt computed anew."""
    backbone = build_backbone(name)
    cold = Engine(backbone, EngineConfig(max_rows=1, max_context=128, prompt_cache_bytes=1))
    found: dict[str, list[Event]] = {}
    for prompt, request in requests_for(backbone):
        found |= run(cold, [(prompt, request)])
    assert cold.stats().prefix_hits == 0
    return found


@pytest.mark.parametrize("cache_bytes", [EngineConfig().prompt_cache_bytes, 1])
@pytest.mark.parametrize("name", [*FAST, *REFERENCE])
def test_mixed_batch_of_all_placements_equals_each_row_alone(name: str, cache_bytes: int) -> None:
    backbone = build_backbone(name)
    made = requests_for(backbone)
    config = EngineConfig(max_rows=16, max_context=128, max_padding=0.9, prompt_cache_bytes=cache_bytes)
    engine = Engine(backbone, config)
    run(engine, made)
    hits, misses = engine.stats().prefix_hits, engine.stats().prefix_misses
    mixed = run(engine, made)  # once more: what can be cached is now
    hits, misses = engine.stats().prefix_hits - hits, engine.stats().prefix_misses - misses
    if name in FAST and cache_bytes > 1:
        assert hits > 0
        assert misses == 0
    else:
        assert hits == 0
        assert misses > 0
    for _, request in made:
        alone = alone_without_a_cache(name)[request.id]
        assert sum(event.finish is not None for event in mixed[request.id]) == 1
        assert tokens_of(mixed[request.id]) == tokens_of(alone)
        if request.rows[0].verbalizer:
            assert mixed[request.id][-1].scores == pytest.approx(alone[-1].scores, abs=TOLERANCE)


@pytest.mark.parametrize("name", [*FAST, *REFERENCE])
def test_greedy_tokens_equal_the_models_own_generate(name: str) -> None:
    backbone = build_backbone(name)
    made = [(p, r) for p, r in requests_for(backbone) if r.rows[0].sampling and r.rows[0].sampling.temperature == 0]
    ours = run(Engine(backbone, EngineConfig(max_rows=16, max_context=128, max_padding=0.9)), made)
    for prompt, request in made:
        layout = lay_out([request.rows[0].row], offsets=[0])
        embeds = embed(layout, backbone.embedding, prompt.vectors)
        wanted = backbone.model.generate(
            inputs_embeds=embeds,
            attention_mask=torch.ones(embeds.shape[:2], dtype=torch.int64),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
        )[0].tolist()
        ends = backbone.tokenizer.eos_ids
        wanted = wanted[: next((i for i, token in enumerate(wanted) if token in ends), len(wanted))]
        assert tokens_of(ours[request.id]) == wanted


def test_a_reused_prompt_gives_the_answer_of_a_fresh_one() -> None:
    backbone = build_backbone("llama")
    made = requests_for(backbone)
    engine = Engine(backbone, EngineConfig(max_rows=8, max_context=128))
    first, second = run(engine, made), run(engine, made)
    assert engine.stats().prefix_hits > 0
    for _, request in made:
        assert tokens_of(first[request.id]) == tokens_of(second[request.id])
        if request.rows[0].verbalizer:
            assert second[request.id][-1].scores == pytest.approx(first[request.id][-1].scores, abs=TOLERANCE)


def test_a_cancelled_neighbour_changes_nothing() -> None:
    backbone = build_backbone("llama")
    made = [(p, r) for p, r in requests_for(backbone) if r.rows[0].sampling]
    undisturbed = run(Engine(backbone, EngineConfig(max_rows=16, max_context=128)), made)
    engine = Engine(backbone, EngineConfig(max_rows=16, max_context=128))
    events: dict[str, list[Event]] = {request.id: [] for _, request in made}
    for prompt, request in made:
        if prompt.vectors is not None:
            engine.load(prompt.digest, prompt.vectors)
        engine.submit(request)
    for step in range(100):
        for event in engine.step():
            events[event.request_id].append(event)
        if step == 3:
            for _, request in made[::3]:
                engine.cancel(request.id)
        engine.check_integrity()
        if engine.idle:
            break
    cancelled = {request.id for _, request in made[::3] if events[request.id][-1].finish == "cancelled"}
    assert cancelled
    for _, request in made:
        if request.id not in cancelled:
            assert tokens_of(events[request.id]) == tokens_of(undisturbed[request.id])
