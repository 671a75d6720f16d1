"""A model prepared for training computes what it computed before, forwards and backwards."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from app.backbone import Backbone, encode_row, parse_template
from app.backbone.scoring import score_rows
from app.backbone.training_form import prepare_for_training
from tests.architectures import build_backbone
from tests.prompts import TEXTS


def prepared(backbone: Backbone) -> Backbone:
    model = copy.deepcopy(backbone.model)
    assert backbone.probed.forward is not None
    forward = replace(backbone.probed.forward, model=model)
    return prepare_for_training(replace(backbone, model=model, probed=replace(backbone.probed, forward=forward)))


def scores_and_gradient(backbone: Backbone) -> tuple[torch.Tensor, torch.Tensor]:
    vectors = torch.randn(6, backbone.hidden_size, generator=torch.Generator().manual_seed(1))
    vectors = (vectors * backbone.embedding_rms).requires_grad_()
    template = parse_template("<prompt:6>{text}")
    rows = [encode_row(backbone.tokenizer, template, "none", {"text": text * 4}) for text in TEXTS[:4]]
    found = torch.cat(score_rows(backbone, rows, [vectors] * 4, [(5, 6, 7)] * 4))
    (gradient,) = torch.autograd.grad(found.sum(), vectors)
    return found.detach(), gradient


@pytest.mark.parametrize("limit", [0, 1 << 30], ids=["torch's attention", "plain products"])
@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "gpt2", "opt", "neox", "mistral_window", "gemma2", "phi"])
def test_prepared_model_gives_the_scores_and_gradients_of_the_plain_one(
    name: str, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.backbone.training_form.PLAIN_PLACES", limit)
    plain = build_backbone(name)
    quick = prepared(plain)
    scores, gradient = scores_and_gradient(plain)
    same, close = scores_and_gradient(quick)
    assert torch.allclose(same, scores, atol=1e-4)
    assert (close - gradient).abs().max() < 1e-4 * gradient.abs().max()


def test_preparing_twice_changes_nothing_more() -> None:
    once = prepared(build_backbone("llama"))
    layers = [id(module) for module in once.model.modules()]
    assert [id(module) for module in prepare_for_training(once).model.modules()] == layers
