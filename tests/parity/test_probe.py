"""The load probe: each architecture is served right, by the fast path or by the reference runner, or refused."""

from __future__ import annotations

import pytest
import torch

from app.backbone.forward import MaskStyle
from app.backbone.probe import probe, probeable_context
from app.errors import UnsupportedBackbone
from tests.architectures import VOCABULARY, build_backbone, build_model

FAST = ["gpt2", "opt", "neox", "phi", "falcon", "gptj", "dynamic_rope"]
PACKED = ["llama", "qwen2", "qwen3", "mistral", "narrow_heads"]


@pytest.mark.parametrize("name", FAST)
def test_probe_of_common_decoders_takes_the_fast_path(name: str) -> None:
    backbone = build_backbone(name)
    assert backbone.runner_name == "fast"
    assert backbone.probed.deviation < 1e-4


@pytest.mark.parametrize("name", PACKED)
def test_probe_of_llama_shapes_takes_the_packed_form_and_keeps_the_differentiable_one(name: str) -> None:
    backbone = build_backbone(name)
    assert backbone.runner_name == "packed"
    assert backbone.forward.model is backbone.model
    assert backbone.probed.deviation < 1e-4


def test_probe_of_a_model_that_only_looks_like_llama_refuses_the_packed_form() -> None:
    model = build_model("llama")
    model.model.layers[1].self_attn.scaling *= 1.5  # as some descendants do in their later layers
    assert probe(model, vocab_size=VOCABULARY, context=256).decoder is None


def test_probe_of_a_short_sliding_window_finds_the_window_mask() -> None:
    assert build_backbone("mistral_window").runner_name == "fast"
    assert build_backbone("mistral_window").forward.mask_style is MaskStyle.WINDOW


@pytest.mark.parametrize("name", ["gemma2", "gemma3"])
def test_probe_of_alternating_windows_gives_each_layer_its_mask(name: str) -> None:
    assert build_backbone(name).forward.mask_style is MaskStyle.BY_LAYER_TYPE


def test_probe_of_scaled_logits_takes_them_from_the_whole_model() -> None:
    assert build_backbone("cohere").forward.head_apart is False


@pytest.mark.parametrize("name", ["bloom", "mpt"])
def test_probe_of_models_with_their_own_positions_falls_back_to_the_reference_runner(name: str) -> None:
    backbone = build_backbone(name)
    assert backbone.runner_name == "reference"
    assert backbone.probed.deviation < 1e-4
    with pytest.raises(UnsupportedBackbone, match="fast path"):
        _ = backbone.forward


@pytest.mark.filterwarnings("ignore")  # the model's own notes on missing kernels
def test_probe_of_a_model_whose_cache_disagrees_with_its_forward_refuses_it() -> None:
    with pytest.raises(UnsupportedBackbone, match="cannot be served faithfully"):
        build_backbone("mamba")


def test_probe_of_a_dynamic_rope_stops_at_the_length_where_frequencies_begin_to_move() -> None:
    assert build_backbone("dynamic_rope").max_positions == 128


def test_context_of_a_long_sliding_window_is_bounded_by_the_window() -> None:
    config = build_model("mistral_window").config
    config.sliding_window = 4096
    assert probeable_context(config, 32_768) == 4096


def test_probe_of_a_fast_path_that_lies_is_caught() -> None:
    """A model that ignores positions in batches: the very fault the probe exists for."""
    model = build_model("llama")
    honest = model.model.rotary_emb.forward

    def first_row_for_all(x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return honest(x, position_ids[:1].expand_as(position_ids))

    model.model.rotary_emb.forward = first_row_for_all
    result = probe(model, vocab_size=VOCABULARY, context=2048)
    assert result.forward is None
    assert "differ" in result.reason
