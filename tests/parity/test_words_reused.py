"""A template's own words behind a leading prompt are computed once, like the prompt, and change no answer."""

from __future__ import annotations

import time

import pytest
import torch

from app.backbone import Backbone, encode_row, parse_template
from app.backbone.kv import PrefixKV
from app.backbone.soft_prompt import SoftPrompt
from app.engine import Engine, EngineConfig, Event, Request, Sampling
from tests.architectures import build_backbone

TEMPLATE = parse_template("<prompt:4>Tell at length what the review says of the film: {text}\nAnswer:")
TEXTS = ("dull", "a warm and funny story", " the plot goes nowhere")


def learned(backbone: Backbone, form: str) -> SoftPrompt:
    torch.manual_seed(3)
    if form == "vectors":
        return torch.randn(4, backbone.embedding.weight.shape[1])
    assert backbone.kv_shape is not None
    return PrefixKV(0.5 * torch.randn(backbone.kv_shape.prefix(4)))


def answers(engine: Engine, prompt: SoftPrompt, backbone: Backbone) -> list[tuple[list[Event], int]]:
    """Of each text by itself: its events, and how many tokens were computed for it before its first one."""
    found = []
    engine.load("a", prompt)
    for text in TEXTS:
        row = encode_row(backbone.tokenizer, TEMPLATE, "after_prompt", {"text": text})
        before, events = engine.stats().prompt_tokens, list[Event]()
        engine.submit(Request.single(text, row, "a", time.monotonic() + 600, Sampling(6), None))
        while not engine.idle:
            events += engine.step()
            engine.check_integrity()
        found.append((events, engine.stats().prompt_tokens - before))
    return found


@pytest.mark.parametrize("form", ["vectors", "keys and values"])
@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2"])
def test_words_behind_a_prompt_are_computed_once_and_answers_stay(name: str, form: str) -> None:
    backbone = build_backbone(name)
    prompt = learned(backbone, form)
    config = EngineConfig(max_rows=4, max_context=128)
    warm = answers(Engine(backbone, config), prompt, backbone)
    cold = answers(Engine(backbone, EngineConfig(max_rows=4, max_context=128, prompt_cache_bytes=1)), prompt, backbone)
    assert [[event.token for event in events] for events, _ in warm] == [
        [event.token for event in events] for events, _ in cold
    ]
    words = len(backbone.tokenizer.encode_text("Tell at length what the review says of the film:"))
    for (_, computed), (_, in_full) in zip(warm[1:], cold[1:], strict=True):
        assert computed <= in_full - words
