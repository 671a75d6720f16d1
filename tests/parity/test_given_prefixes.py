"""Keys and values that are given equal the vectors they come from: in scoring, in answers, and in the engine."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from app.backbone import Backbone, LoadedPrompt, answer_logprobs, encode_row, generate_greedy, score_labels
from app.backbone.kv import PrefixKV
from app.backbone.rows import Row
from app.backbone.runner import FastRunner, PrefillItem
from app.engine import Event, Request, Sampling
from app.errors import InvalidRequest
from tests import families
from tests.architectures import build_backbone
from tests.engines import ends, make_engine, row_of, run, tokens_of
from tests.families import save_backbone, workshop
from tests.prompts import TEXTS, WORDS, make_prompt
from tests.training_data import mood_rows

MODELS = ["llama", "gpt2", "opt", "qwen2", "neox"]
TOLERANCE = 1e-4


def prefix_of(backbone: Backbone, vectors: torch.Tensor) -> PrefixKV:
    """The keys and values that the model itself computes from vectors that come first."""
    runner = FastRunner(backbone.forward, slots=1, places=vectors.shape[0] + 1)
    with torch.no_grad():
        runner.prefill(0, [PrefillItem(Row(tuple(-1 - j for j in range(vectors.shape[0]))), vectors)])
    return runner.read_prefix(0, vectors.shape[0])


@pytest.fixture(scope="module", params=MODELS)
def backbone(request: Any) -> Backbone:
    return build_backbone(request.param)


def leading(backbone: Backbone, size: int, seed: int) -> tuple[LoadedPrompt, LoadedPrompt]:
    """A prompt of vectors and its twin of keys and values."""
    prompt = make_prompt(backbone, f"<prompt:{size}>Review: {{text}}\nSentiment:", words=WORDS, seed=seed)
    assert prompt.vectors is not None
    given = replace(prompt, learned=prefix_of(backbone, prompt.vectors), digest=f"{seed:064x}")
    return prompt, given


def test_label_scores_with_given_keys_equal_those_with_the_vectors(backbone: Backbone) -> None:
    long, short = leading(backbone, 9, 1), leading(backbone, 3, 2)
    suffix = make_prompt(backbone, "{text}<prompt:6>", words=WORDS, seed=3)
    mixed = [(long[0], long[1]), (suffix, suffix), (short[0], short[1]), (long[0], long[1])]
    rows = [encode_row(backbone.tokenizer, of.template, of.bos, {"text": TEXTS[i]}) for i, (of, _) in enumerate(mixed)]
    words = [of.verbalizer for of, _ in mixed]
    with torch.no_grad():
        wanted = score_labels(backbone, rows, [of.learned for of, _ in mixed], words)
        got = score_labels(backbone, rows, [of.learned for _, of in mixed], words)
    for one, other in zip(got, wanted, strict=True):
        assert torch.allclose(one, other, atol=TOLERANCE)


def test_row_of_nothing_but_given_keys_is_refused_and_spoils_no_neighbour(backbone: Backbone) -> None:
    bare = make_prompt(backbone, "<prompt:4>{text}", words=WORDS, seed=5, bos="none")
    assert bare.vectors is not None
    keys = prefix_of(backbone, bare.vectors)
    full, empty = (encode_row(backbone.tokenizer, bare.template, "none", {"text": text}) for text in (TEXTS[0], ""))
    for rows in ([full, empty], [empty, full], [empty]):
        with pytest.raises(InvalidRequest, match="not one token"):
            score_labels(backbone, rows, [keys] * len(rows), [bare.verbalizer] * len(rows))


def test_answers_with_given_keys_equal_those_with_the_vectors(backbone: Backbone) -> None:
    (vectors, given), text = leading(backbone, 5, 4), {"text": TEXTS[0]}
    row = encode_row(backbone.tokenizer, vectors.template, vectors.bos, text)
    both = [vectors.learned, given.learned]
    first, second = generate_greedy(backbone, [row, row], both, max_tokens=6)
    assert first.tokens == second.tokens
    with torch.no_grad():
        known, same = answer_logprobs(backbone, [row, row], both, [(5, 6, 7), (5, 6, 7)])
    assert torch.allclose(known, same, atol=TOLERANCE)


def test_gradients_reach_given_keys_and_no_other_rows(backbone: Backbone) -> None:
    (_, first), (_, second) = leading(backbone, 4, 5), leading(backbone, 7, 6)
    prefixes = [PrefixKV(of.learned.data.clone().requires_grad_()) for of in (first, second)]
    rows = [encode_row(backbone.tokenizer, of.template, of.bos, {"text": TEXTS[1]}) for of in (first, second)]
    scores = score_labels(backbone, rows, prefixes, [first.verbalizer, second.verbalizer])
    scores[0].sum().backward()
    assert prefixes[0].data.grad.abs().sum(dim=(2, 3, 4)).min() > 0  # of every layer's keys and values
    assert prefixes[1].data.grad.abs().max() == 0


def test_the_engine_answers_with_given_keys_as_with_the_vectors(backbone: Backbone) -> None:
    engine = make_engine(backbone)
    events: dict[str, list[Event]] = {}
    for name, of in zip(("vectors", "given"), leading(backbone, 6, 7), strict=True):
        engine.load(of.digest, of.learned)
        engine.submit(
            Request.single(f"{name}-label", row_of(backbone, of, TEXTS[2]).row, of.digest, 1e9, None, of.verbalizer)
        )
        row = row_of(backbone, of, TEXTS[3], Sampling(max_tokens=6))
        engine.submit(Request.single(f"{name}-text", row.row, of.digest, 1e9, row.sampling))
    events = run(engine)
    assert set(ends(events).values()) <= {"label", "length", "stop"}
    assert tokens_of(events["vectors-text"]) == tokens_of(events["given-text"])
    label, same = (events[f"{name}-label"][-1].scores for name in ("vectors", "given"))
    assert label == pytest.approx(same, abs=TOLERANCE)


def test_prefix_of_a_backbone_without_a_begin_token_is_learned_where_the_template_is_the_input_alone(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Among the inputs without content that its calibration asks is the empty text: not one token to read."""

    def save_without_frame(name: str, folder: Path) -> Path:
        file = save_backbone(name, folder) / "tokenizer.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"post_processor": None}))
        return folder

    monkeypatch.setattr(families, "save_backbone", save_without_frame)
    with workshop("gpt2", redis_url, tmp_path) as shop:
        assert not shop.backbone.tokenizer.adds_bos
        job = shop.train(
            task="mood",
            training_data={"inline": mood_rows(8)},
            template="<prompt:6>{text}",
            method={"type": "prefix_tuning"},
        )
        assert job.status == "succeeded", job.error
        (card,) = shop.store.get_version("mood", 1).card
        assert card.calibration is not None
