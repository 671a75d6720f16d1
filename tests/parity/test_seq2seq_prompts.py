"""Versions with a decoder's side on an encoder-decoder: checked when loaded, served beside others, counted in full."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from app.backbone import Backbone, Decoding, LoadedPrompt, generate_greedy, load_prompt, score_labels
from app.backbone.rows import encode_row
from app.backbone.soft_prompt import EncoderDecoderPrompt, to_tensors
from app.engine.answers import Answer, Ask
from app.errors import ContextTooLong, InvalidPrompt
from prompt_store.models import PromptMeta, Version
from tests.architectures import build_backbone
from tests.engines import serving
from tests.prompts import WORDS, make_prompt


def both_sides(backbone: Backbone, seed: int, *, decoder: int = 2, prefix: int = 3, cross: int = 1) -> Any:
    generator = torch.Generator().manual_seed(seed)
    shape = backbone.decoder_kv_shape
    assert shape is not None

    def draw(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator) * 0.5

    tensors = {
        "prompt": draw(4, backbone.hidden_size),
        "decoder_prompt": draw(decoder, backbone.hidden_size),
        "decoder_prefix": draw(*shape.prefix(prefix)),
        "cross_prefix": draw(*shape.prefix(cross)),
    }
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def version_of(backbone: Backbone, tensors: dict[str, np.ndarray], **changes: Any) -> Version:
    meta: dict[str, Any] = {
        "task": "t",
        "template": "<prompt:4>{text}",
        "bos": "after_prompt",
        "method": {"type": "prompt_tuning"},
        "backbone": backbone.ref,
        "num_virtual_tokens": 4,
        "tensors": {name: array.shape for name, array in tensors.items()},
        **changes,
    }
    return Version(
        task="t", task_id="i", number=2, digest="0" * 64, size_bytes=1, state="published",
        meta=PromptMeta(**meta), publication="p", created_at=0.0,
    )  # fmt: skip


@pytest.mark.anyio
async def test_rows_with_a_decoders_side_are_served_beside_others_as_each_alone() -> None:
    backbone = build_backbone("t5")
    rich = [
        replace(load_prompt(version_of(backbone, tensors), tensors, backbone), digest=f"{seed:0>64}")
        for seed in (1, 2)
        for tensors in (both_sides(backbone, seed, decoder=seed, prefix=2 * seed),)
    ]
    prompts: list[LoadedPrompt] = [
        *rich,
        make_prompt(backbone, "{text}<prompt:3>", seed=3),
        make_prompt(backbone, "<prompt:3>{text}", words=WORDS, seed=4),
        replace(rich[0], verbalizer=make_prompt(backbone, "{text}", words=WORDS).verbalizer),
    ]
    asks = [
        Ask(prompt, {"text": text}, Decoding(max_tokens=4 + i), None)
        for i, prompt in enumerate(prompts)
        for text in ("a warm story", "dull and far too long for what it is")
    ]
    async with serving(backbone) as service:
        answers = await service.answer_together(asks, timeout_s=60)
    for ask, answer in zip(asks, answers, strict=True):
        assert isinstance(answer, Answer)
        row = encode_row(backbone.tokenizer, ask.prompt.template, ask.prompt.bos, ask.input)
        assert answer.usage.virtual_tokens == ask.prompt.num_virtual_tokens
        if ask.prompt.verbalizer is not None:
            (scores,) = score_labels(backbone, [row], [ask.prompt.learned], [ask.prompt.verbalizer])
            assert answer.log_scores is not None
            assert list(answer.log_scores.values()) == pytest.approx(scores.tolist(), abs=1e-4)
        else:
            (alone,) = generate_greedy(backbone, [row], [ask.prompt.learned], max_tokens=ask.decoding.max_tokens)
            assert tuple(answer.token_ids) == alone.tokens


@pytest.mark.anyio
async def test_virtual_tokens_of_the_decoder_count_in_the_context() -> None:
    backbone = build_backbone("t5")
    tensors = both_sides(backbone, 1, decoder=60, prefix=60, cross=30)
    prompt = load_prompt(version_of(backbone, tensors), tensors, backbone)
    assert prompt.num_virtual_tokens == 154
    async with serving(backbone, max_context=160) as service:
        with pytest.raises(ContextTooLong, match="154 virtual tokens"):
            await service.answer(prompt, {"text": "so"}, decoding=Decoding(max_tokens=8), timeout_s=30)


def test_load_of_a_decoders_side_keeps_all_parts() -> None:
    backbone = build_backbone("bart")
    tensors = both_sides(backbone, 1)
    prompt = load_prompt(version_of(backbone, tensors), tensors, backbone)
    assert isinstance(prompt.learned, EncoderDecoderPrompt)
    assert set(to_tensors(prompt.learned)) == set(tensors)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda t: {**t, "decoder_prompt": t["decoder_prompt"][:, :-1]}, "wanted"),
        (lambda t: {**t, "decoder_prefix": t["decoder_prefix"][:, :-1]}, "wanted"),
        (lambda t: {**t, "cross_prefix": t["cross_prefix"][0]}, "5 dimensions"),
        (lambda t: {**t, "decoder_prompt": t["decoder_prompt"] * 1e9}, "norm"),
        (lambda t: {**t, "decoder_prompt": np.repeat(t["decoder_prompt"], 600, 0)}, "at most 1024"),
        (lambda t: {"prefix": t["decoder_prefix"]}, "decoder's side"),
    ],
)
def test_load_of_a_decoders_side_that_does_not_fit_is_refused(spoil: Any, reason: str) -> None:
    backbone = build_backbone("bart")
    tensors = spoil(both_sides(backbone, 1))
    with pytest.raises(InvalidPrompt, match=reason):
        load_prompt(version_of(backbone, tensors), tensors, backbone)


@pytest.mark.parametrize(("name", "reason"), [("llama", "encoder-decoder"), ("bert", "no keys and values")])
def test_load_of_a_decoders_side_elsewhere_is_refused(name: str, reason: str) -> None:
    backbone = build_backbone(name)
    tensors = {"decoder_prompt": np.zeros((2, backbone.hidden_size), np.float32)}
    words = {"verbalizer": {"a": (" a",)}, "verbalizer_ids": {"a": ((5,),)}}
    version = version_of(backbone, tensors, template="{text} <mask>.", num_virtual_tokens=0, **words)
    with pytest.raises(InvalidPrompt, match=reason):
        load_prompt(version, tensors, backbone)
