"""Small decoder models with random weights and a fixed seed, one for each architecture the tests speak of."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoTokenizer

from app.backbone.backbone import Backbone, make_tokenizer, wrap_model
from app.backbone.source import bundled_folder

VOCABULARY = 8192
_SHAPE = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96}
_GQA = {**_SHAPE, "num_key_value_heads": 2}
_ROPE = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
CONFIGURATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", _GQA),
    "qwen2": ("qwen2", _GQA),
    "qwen3": ("qwen3", {**_GQA, "head_dim": 32}),
    "mistral": ("mistral", {**_GQA, "sliding_window": 4096}),
    "narrow_heads": ("llama", {**_GQA, "head_dim": 12}),
    "gpt2": ("gpt2", {"n_embd": 64, "n_layer": 3, "n_head": 4}),
    "opt": (
        "opt",
        {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "ffn_dim": 96, "word_embed_proj_dim": 64},
    ),
    "neox": ("gpt_neox", _SHAPE),
    "mistral_window": ("mistral", {**_GQA, "sliding_window": 24}),
    "gemma2": ("gemma2", {**_GQA, "head_dim": 16, "sliding_window": 24, "query_pre_attn_scalar": 16}),
    "gemma3": ("gemma3_text", {**_GQA, "head_dim": 16, "sliding_window": 24, "query_pre_attn_scalar": 16}),
    "bloom": ("bloom", {"hidden_size": 64, "n_layer": 3, "n_head": 4}),
    "falcon": ("falcon", {**_SHAPE, "new_decoder_architecture": False}),
    "mpt": ("mpt", {"d_model": 64, "n_layers": 3, "n_heads": 4}),
    "gptj": ("gptj", {"n_embd": 64, "n_layer": 3, "n_head": 4, "rotary_dim": 16}),
    "cohere": ("cohere", {**_GQA, "logit_scale": 0.25}),
    "phi": ("phi", _SHAPE),
    "dynamic_rope": ("llama", {**_GQA, "max_position_embeddings": 128, "rope_parameters": _ROPE}),
    "mamba": ("mamba", {"hidden_size": 64, "num_hidden_layers": 2}),
}


def build_model(name: str, *, seed: int = 7) -> Any:
    """The named model, float32, weights larger than usual so that attention has something to say."""
    kind, options = CONFIGURATIONS[name]
    config = CONFIG_MAPPING[kind](vocab_size=VOCABULARY, bos_token_id=0, eos_token_id=1, pad_token_id=2, **options)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    return model.eval().requires_grad_(False)


@cache
def build_backbone(name: str) -> Backbone:
    """The named model, probed, with the bundled tokenizer."""
    model = build_model(name)
    tokenizer = make_tokenizer(AutoTokenizer.from_pretrained(bundled_folder()), model)
    return wrap_model(model, tokenizer, name=name, identity=f"{name:0>64}")
