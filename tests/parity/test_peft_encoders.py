"""The same weights in a PEFT encoder and in ours give the same prompt: P-tuning, prefix tuning, multitask."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import MultitaskPromptTuningConfig, PrefixEncoder, PrefixTuningConfig, PromptEncoder, PromptEncoderConfig
from peft.tuners.multitask_prompt_tuning import MultitaskPromptEmbedding

from app.backbone.kv import KVShape
from app.training.methods.multitask import fold
from app.training.methods.p_tuning import LSTMEncoder, MLPEncoder
from app.training.methods.prefix_tuning import PrefixNetwork

P, H = 7, 24


def load(ours: torch.nn.Module, theirs: torch.nn.Module) -> None:
    ours.load_state_dict(theirs.state_dict(), strict=True)


@pytest.mark.parametrize("width", [24, 10])
@pytest.mark.parametrize(("kind", "layers"), [("MLP", 2), ("LSTM", 1), ("LSTM", 2)])
def test_p_tuning_encoder_says_what_pefts_says(kind: str, layers: int, width: int) -> None:
    config = PromptEncoderConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=P,
        token_dim=H,
        num_transformer_submodules=1,
        encoder_reparameterization_type=kind,
        encoder_hidden_size=width,
        encoder_num_layers=layers,
        inference_mode=False,
    )
    theirs = PromptEncoder(config)
    ours = MLPEncoder(P, H, width) if kind == "MLP" else LSTMEncoder(P, H, width, layers)
    load(ours, theirs)
    assert torch.allclose(ours(), theirs(torch.arange(P)[None])[0], atol=1e-6)


def test_prefix_network_says_what_pefts_says() -> None:
    shape = KVShape(layers=3, groups=2, width=5)
    config = PrefixTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=P,
        token_dim=shape.groups * shape.width,
        num_transformer_submodules=1,
        num_attention_heads=shape.groups,
        num_layers=shape.layers,
        encoder_hidden_size=11,
        prefix_projection=True,
        inference_mode=False,
    )
    theirs = PrefixEncoder(config)
    ours = PrefixNetwork(P, shape, 11)
    load(ours, theirs)
    assert torch.allclose(ours(), _by_layer(theirs(torch.arange(P)[None]), shape), atol=1e-6)


def _by_layer(flat: torch.Tensor, shape: KVShape) -> torch.Tensor:
    """What `PeftModel.get_prompt` makes of an encoder's output, as [2, L, G, P, D]."""
    by_token: Any = flat.view(1, P, shape.layers * 2, shape.groups, shape.width)
    pairs = by_token.permute([2, 0, 3, 1, 4]).split(2)
    return torch.stack([pair[:, 0] for pair in pairs], 1)


@pytest.mark.parametrize("ranks", [1, 3])
def test_multitask_prompt_folds_as_pefts_does(ranks: int) -> None:
    config = MultitaskPromptTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=P,
        token_dim=H,
        num_transformer_submodules=1,
        num_tasks=3,
        num_ranks=ranks,
    )
    theirs = MultitaskPromptEmbedding(config, torch.nn.Embedding(30, H))
    for task in range(3):
        wanted = theirs(torch.arange(P)[None], torch.tensor([task]))[0]
        ours = fold(theirs.embedding.weight, theirs.prefix_task_cols[task], theirs.prefix_task_rows[task])
        assert torch.allclose(ours, wanted, atol=1e-7)
