"""A model laid out by transformers' device map computes what the same model computes on one device."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate import dispatch_model

from app.backbone import Backbone, BackboneConfig, Row, load_backbone
from app.backbone.backbone import wrap_model
from app.backbone.runner import prefill_item
from app.backbone.scoring import score_rows
from tests.architectures import build_backbone, build_model
from tests.families import save_backbone

ROWS = [Row((-1, -2, -3, 7, 8, 9), 3), Row((-1, -2, -3, 30, 31), 3)]


def gradient(backbone: Backbone) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.randn(3, backbone.hidden_size, generator=torch.Generator().manual_seed(2))
    leaf = (draw * backbone.embedding_rms).requires_grad_()
    found = torch.cat(score_rows(backbone, ROWS, [leaf] * 2, [(5, 6, 7)] * 2))
    (of,) = torch.autograd.grad(found.sum(), leaf)
    return found.detach(), of


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5", "bert"])
def test_model_loaded_by_a_device_map_equals_the_plain_one(name: str, tmp_path: Path) -> None:
    folder = save_backbone(name, tmp_path / name)
    plain = load_backbone(BackboneConfig(source=str(folder), device="cpu"))
    mapped = load_backbone(BackboneConfig(source=str(folder), device_map="auto"))
    assert mapped.fingerprint == plain.fingerprint
    assert mapped.device == plain.device
    assert mapped.family == plain.family
    if plain.family == "causal":
        for one, other in zip(gradient(mapped), gradient(plain), strict=True):
            assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3"])
def test_layers_behind_hooks_compute_what_they_compute_without(name: str) -> None:
    """Every layer with the hooks that move what it is given, as they stand in a model over several devices."""
    plain = build_backbone(name)
    model = build_model(name)
    base = model.base_model
    places = {f"{model.base_model_prefix}.{child}": "cpu" for child, _ in base.named_children()}
    dispatch_model(model, {**places, "lm_head": "cpu"}, main_device="cpu", force_hooks=True)
    hooked = [module for module in model.modules() if hasattr(module, "_hf_hook")]
    assert len(hooked) > 3
    spread = wrap_model(model, plain.tokenizer, name=name, identity=plain.fingerprint)
    assert spread.probed.forward is not None
    for one, other in zip(gradient(spread), gradient(plain), strict=True):
        assert torch.allclose(one, other, atol=1e-5)
    vectors = torch.randn(3, plain.hidden_size)
    both = [
        of.runner(slots=2, places=32).prefill(0, [prefill_item(row, vectors) for row in ROWS]).logits
        for of in (spread, plain)
    ]
    assert torch.allclose(both[0].float(), both[1].float(), atol=1e-4)
