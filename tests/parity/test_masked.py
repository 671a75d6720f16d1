"""Masked models: rows of any tasks in one batch are scored as each alone, by the model's own forward at its masks."""

from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor

from app.backbone import (
    Backbone,
    LoadedPrompt,
    Row,
    answer_logprobs,
    compile_verbalizer,
    encode_row,
    generate_greedy,
    parse_template,
    score_labels,
)
from app.backbone.families.masked_probe import probe_masked
from app.backbone.kv import PrefixKV
from app.backbone.layout import embed, lay_out
from app.backbone.rows import check_mask
from app.engine import Engine, EngineConfig, Request
from app.errors import CapabilityMissing, InvalidPrompt, InvalidTemplate
from tests.architectures import VOCABULARY, build_backbone, build_model
from tests.prompts import TEXTS, make_prompt

MODELS = ["bert", "roberta", "electra", "distilbert", "modernbert"]
TEMPLATES = (
    "<prompt:9>{text} It was <mask>.",
    "{text}<prompt:3> It was<prompt:4> <mask>.",
    "<mask>! {text}<prompt:6>",
    "{text} A <mask> film.",
)
WORDS = {"good": [" good", " great fun to watch"], "bad": [" bad", " quite bad"]}
TOLERANCE = 1e-4


def alone(backbone: Backbone, row: Row, prompt: LoadedPrompt) -> Tensor:
    """Scores [K] by the model's own forward, one word at a time, unpadded."""
    verbalizer, mask = prompt.verbalizer, backbone.tokenizer.mask_id
    assert verbalizer is not None
    assert mask is not None
    place = row.ids.index(mask)
    scores: list[list[Tensor]] = [[] for _ in verbalizer.labels]
    for label, word in verbalizer.flat:
        ids = Row((*row.ids[:place], *[mask] * len(word), *row.ids[place + 1 :]))
        embeds = embed(lay_out([ids], offsets=[0]), backbone.embedding, prompt.vectors)
        logits = backbone.model(inputs_embeds=embeds).logits[0]
        log_probs = logits[place : place + len(word)].log_softmax(-1)
        scores[label].append(log_probs[range(len(word)), list(word)].sum())
    return torch.stack([torch.stack(of).logsumexp(0) for of in scores])


@pytest.mark.parametrize("name", MODELS)
def test_probe_of_a_masked_model_takes_the_batched_forward(name: str) -> None:
    backbone = build_backbone(name)
    assert (backbone.family, backbone.runner_name) == ("masked", "fast")
    assert backbone.probed.deviation < 1e-4
    assert backbone.probed.masked is not None
    assert backbone.probed.masked.head is not None


def test_context_of_positions_behind_a_padding_index_is_shorter_than_their_table() -> None:
    assert build_backbone("bert").max_positions == 200
    assert build_backbone("roberta").max_positions == 200 - 3  # the padding token's id is 2


def test_probe_of_a_head_that_looks_at_the_whole_row_takes_logits_from_the_whole_model() -> None:
    model = build_model("bert")
    louder = 1 + torch.arange(VOCABULARY + 1) / VOCABULARY
    model.cls.register_forward_hook(lambda _, args, out: out + args[0].abs().amax((1, 2), keepdim=True) * louder)
    probed = probe_masked(model, mask_id=VOCABULARY, vocab_size=VOCABULARY, context=200)
    assert probed.masked is not None
    assert (probed.masked.head, probed.masked.alone) == (None, True)


@pytest.mark.parametrize("name", MODELS)
def test_mixed_batch_of_a_masked_model_equals_each_row_alone(name: str) -> None:
    backbone = build_backbone(name)
    engine = Engine(backbone, EngineConfig(max_rows=6, max_context=128))
    wanted: dict[str, Tensor] = {}
    for t, template in enumerate(TEMPLATES):
        prompt = make_prompt(backbone, template, words=WORDS, seed=t)
        digest = prompt.digest if prompt.learned is not None else None
        if prompt.learned is not None:
            engine.load(prompt.digest, prompt.learned)
        for text in TEXTS[t % 2 :: 2]:
            row = encode_row(backbone.tokenizer, prompt.template, prompt.bos, {"text": text})
            wanted[f"{t}{text}"] = alone(backbone, row, prompt)
            engine.submit(
                Request.single(f"{t}{text}", row, digest, time.monotonic() + 600, verbalizer=prompt.verbalizer)
            )
    found: dict[str, Tensor] = {}
    while not engine.idle:
        for event in engine.step():
            found[event.request_id] = torch.tensor(event.scores)
        engine.check_integrity()
    assert found.keys() == wanted.keys()
    for name_of, scores in wanted.items():
        assert torch.allclose(found[name_of], scores, atol=TOLERANCE)


@pytest.mark.parametrize("name", MODELS)
def test_scores_of_training_equal_rows_alone_and_reach_the_vectors(name: str) -> None:
    backbone = build_backbone(name)
    prompt = make_prompt(backbone, TEMPLATES[1], words=WORDS)
    rows = [encode_row(backbone.tokenizer, prompt.template, prompt.bos, {"text": text}) for text in TEXTS]
    assert prompt.vectors is not None
    assert prompt.verbalizer is not None
    vectors = prompt.vectors.clone().requires_grad_(True)
    found = score_labels(backbone, rows, [vectors] * len(rows), [prompt.verbalizer] * len(rows))
    for row, scores in zip(rows, found, strict=True):
        assert torch.allclose(scores, alone(backbone, row, prompt), atol=TOLERANCE)
    torch.stack(found).sum().backward()
    assert vectors.grad is not None
    assert bool((vectors.grad.abs().sum(1) > 0).all())


def test_rows_are_framed_as_the_tokenizer_frames_texts_with_the_prompt_before() -> None:
    backbone = build_backbone("bert")
    tokenizer = backbone.tokenizer
    template = parse_template("<prompt:2>{text} It was <mask>.")
    row = encode_row(tokenizer, template, "after_prompt", {"text": "good"})
    assert row.ids[:3] == (-1, -2, 0)
    assert row.ids[-1] == 1
    assert row.ids.count(tokenizer.mask_id) == 1
    assert row.prefix == 0
    own = parse_template("<prompt:2>{text} It was [MASK].")
    assert encode_row(tokenizer, own, "after_prompt", {"text": "good"}) == row


def test_masks_in_users_text_stay_text() -> None:
    for name in ("bert", "roberta"):
        backbone = build_backbone(name)
        template = parse_template("{text} It was <mask>.")
        row = encode_row(backbone.tokenizer, template, "after_prompt", {"text": "[MASK] or <mask>"})
        assert row.ids.count(backbone.tokenizer.mask_id or -1) == 1


@pytest.mark.parametrize("template", ["{text} It was", "{text} <mask> or <mask>."])
def test_templates_without_exactly_one_mask_are_refused(template: str) -> None:
    with pytest.raises(InvalidTemplate, match="one `<mask>`"):
        check_mask(build_backbone("bert").tokenizer, parse_template(template))


def test_words_of_which_one_begins_another_need_no_end_token() -> None:
    verbalizer = compile_verbalizer(build_backbone("bert").tokenizer, {"a": [" good"], "b": [" good fun"]})
    assert not verbalizer.terminated
    assert verbalizer.branch_tokens == verbalizer.longest


def test_free_text_and_keys_and_values_are_refused() -> None:
    backbone = build_backbone("bert")
    row = Row((5, VOCABULARY, 1))
    with pytest.raises(CapabilityMissing, match="scores labels"):
        generate_greedy(backbone, [row], [None], max_tokens=3)
    with pytest.raises(CapabilityMissing, match="scores labels"):
        answer_logprobs(backbone, [row], [None], [(4, 5)])
    verbalizer = compile_verbalizer(backbone.tokenizer, WORDS)
    with pytest.raises(InvalidTemplate, match="no mask"):
        score_labels(backbone, [Row((5, 1))], [None], [verbalizer])
    with pytest.raises(InvalidPrompt, match="no keys and values"):
        score_labels(backbone, [row], [PrefixKV(torch.zeros(2, 3, 4, 2, 16))], [verbalizer])
