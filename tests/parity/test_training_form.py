"""A model prepared for training computes what it computed before, forwards and backwards."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from app.backbone import Backbone, Row, encode_row, parse_template
from app.backbone.scoring import score_rows
from app.backbone.training_form import PackedLinear, prepare_for_training
from app.backbone.verbalizer import Verbalizer
from tests.architectures import build_backbone, own_copy
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


@pytest.mark.parametrize("name", ["t5", "t5_gated", "bart", "bert", "roberta"])
def test_prepared_encoder_gives_the_scores_and_gradients_of_the_plain_one(name: str) -> None:
    plain = own_copy(name)
    vectors = torch.randn(5, plain.hidden_size, generator=torch.Generator().manual_seed(1)) * plain.embedding_rms
    mask = (plain.tokenizer.mask_id,) if plain.tokenizer.mask_id is not None else ()
    rows = [Row((-1, -2, 7, 8, 9, -3, *mask)), Row((-1, 30, 31, 32, 33, 34, 35, -5, *mask))]
    words = Verbalizer(("a", "b"), (("a",), ("b",)), (((60, 61),), ((70,),)), terminated=False, apart=True)
    found = []
    for backbone in (plain, prepare_for_training(own_copy(name))):
        leaf = vectors.clone().requires_grad_()
        scores = torch.cat(score_rows(backbone, rows, [leaf] * 2, [words] * 2))
        scores.sum().backward()
        assert leaf.grad is not None
        found.append((scores.detach(), leaf.grad))
    (scores, gradient), (same, close) = found
    assert any(isinstance(of, PackedLinear) for of in backbone.model.modules())
    assert torch.allclose(same, scores, atol=1e-4)
    assert (close - gradient).abs().max() < 1e-4 * gradient.abs().max()


def test_preparing_twice_changes_nothing_more() -> None:
    once = prepared(build_backbone("llama"))
    layers = [id(module) for module in once.model.modules()]
    assert [id(module) for module in prepare_for_training(once).model.modules()] == layers


def test_copy_of_a_prepared_model_is_plain_and_its_own() -> None:
    once = prepared(build_backbone("llama"))
    again = copy.deepcopy(once.model)
    assert not any(isinstance(of, PackedLinear) for of in again.modules())
    kept = dict(once.model.named_parameters())
    assert {name: of.shape for name, of in again.named_parameters()} == {name: of.shape for name, of in kept.items()}
    assert all(
        torch.equal(of, kept[name]) and of.data_ptr() != kept[name].data_ptr() for name, of in again.named_parameters()
    )
    ids = torch.tensor([[5, 6, 7, 8]])
    assert torch.allclose(again(ids).logits, once.model(ids).logits, atol=1e-4)
