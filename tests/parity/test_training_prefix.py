"""Leading vectors computed once for a batch train as they do row by row, whatever stands behind them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from app.backbone import Backbone, compile_verbalizer, encode_row, parse_template
from app.backbone.rows import Row
from app.backbone.scoring import Asked, score_rows
from app.backbone.shared_prefix import SharedPrefixes, share_prefixes
from app.backbone.token_probs import token_log_probs
from tests.architectures import build_backbone
from tests.prompts import TEXTS, WORDS

TOLERANCE = 1e-5
TEMPLATES = ("<prompt:9>{text}\nIt was", "<prompt:3>{text} It was<prompt:2>", "{text}<prompt:6>")


@pytest.fixture(params=["llama", "qwen2", "gpt2", "opt", "neox", "mistral_window", "gemma3", "cohere"])
def backbone(request: Any) -> Backbone:
    return build_backbone(request.param)


def batch(backbone: Backbone) -> tuple[list[Row], list[Tensor], list[Tensor], list[Asked]]:
    """Rows of three prompts, label tasks and answers in turn, each row asking its own."""
    generator = torch.Generator().manual_seed(4)
    vectors = [
        torch.randn(parse_template(source).num_virtual_tokens, backbone.hidden_size, generator=generator)
        .mul(backbone.embedding_rms)
        .requires_grad_()
        for source in TEMPLATES
    ]
    verbalizer = compile_verbalizer(backbone.tokenizer, WORDS)
    rows, prompts, asked = [], [], []
    for i in range(9):
        template = parse_template(TEMPLATES[i % 3])
        rows.append(encode_row(backbone.tokenizer, template, "after_prompt", {"text": TEXTS[i % len(TEXTS)]}))
        prompts.append(vectors[i % 3])
        asked.append(verbalizer if i % 2 else (7, 8, 9))
    return rows, vectors, prompts, asked


def gradients(backbone: Backbone, vectors: list[Tensor], scores: list[Tensor]) -> list[Tensor]:
    loss = -torch.stack([score.log_softmax(0)[0] + score.mean() for score in scores]).mean()
    return list(torch.autograd.grad(loss, vectors))


def test_shared_leading_vectors_give_the_gradients_of_rows_that_share_nothing(backbone: Backbone) -> None:
    rows, vectors, prompts, asked = batch(backbone)
    shared = share_prefixes(backbone, rows, prompts)
    assert len(shared.found) == 2  # the third prompt comes last, so nothing leads
    together = score_rows(backbone, rows, prompts, asked, shared=shared)
    apart = score_rows(backbone, rows, prompts, asked, shared=SharedPrefixes())
    for one, other in zip(together, apart, strict=True):
        assert torch.allclose(one, other, atol=TOLERANCE * 10)
    found, wanted = gradients(backbone, vectors, together), gradients(backbone, vectors, apart)
    for one, other in zip(found, wanted, strict=True):
        assert (one - other).abs().max() < TOLERANCE * other.abs().max()


def test_row_that_is_nothing_but_its_prefix_is_not_shared(backbone: Backbone) -> None:
    rows, vectors = [Row((-1, -2), 2)] * 3, torch.randn(2, backbone.hidden_size)
    assert share_prefixes(backbone, rows, [vectors] * 3).found == {}


def test_row_that_is_nothing_but_what_others_share_is_scored_as_alone(backbone: Backbone) -> None:
    rows, vectors = (
        [Row((-1, -2, 5, 6), 2), Row((-1, -2, 7), 2), Row((-1, -2), 2)],
        torch.randn(2, backbone.hidden_size),
    )
    asked = compile_verbalizer(backbone.tokenizer, WORDS)
    shared = share_prefixes(backbone, rows, [vectors] * 3)
    assert len(shared.found) == 1
    together = score_rows(backbone, rows, [vectors] * 3, [asked] * 3, shared=shared)
    (alone,) = score_rows(backbone, rows[2:], [vectors], [asked], shared=SharedPrefixes())
    assert torch.allclose(together[2], alone, atol=TOLERANCE * 10)


def test_values_that_are_not_finite_stay_in_the_rows_that_read_them(backbone: Backbone) -> None:
    rows, vectors, prompts, asked = batch(backbone)
    with torch.no_grad():
        vectors[0][0] = torch.nan
    scores = score_rows(backbone, rows, prompts, asked)
    assert [bool(score.isfinite().all()) for score in scores] == [False, True, True] * 3
    (gradient,) = torch.autograd.grad(sum(score.sum() for score in scores[1::3]), vectors[1])
    assert gradient.isfinite().all()


@pytest.mark.parametrize("chunk", [1, 1 << 30])
def test_log_probabilities_without_kept_logits_equal_a_log_softmax(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.backbone.token_probs.CHUNK_BYTES", chunk)
    torch.manual_seed(0)
    hidden, weight, bias = torch.randn(5, 8, requires_grad=True), torch.randn(30, 8), torch.randn(30)
    pick, tokens = torch.tensor([0, 1, 1, 4, 0, 3]), torch.tensor([2, 29, 3, 0, 2, 7])
    found = token_log_probs(hidden, weight, bias, pick, tokens)
    wanted = F.linear(hidden, weight, bias).log_softmax(-1)[pick, tokens]
    assert torch.allclose(found, wanted, atol=1e-5)
    towards = torch.randn(6)
    (gradient,) = torch.autograd.grad(found, hidden, towards)
    (expected,) = torch.autograd.grad(wanted, hidden, towards)
    assert torch.allclose(gradient, expected, atol=1e-5)
