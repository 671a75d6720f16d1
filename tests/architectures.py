"""Small models with random weights and a fixed seed, one for each architecture the tests speak of."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from tokenizers.processors import TemplateProcessing
from transformers import CONFIG_MAPPING, AddedToken, AutoTokenizer

from app.backbone.backbone import Backbone, make_tokenizer, wrap_model
from app.backbone.families.masked_forward import head_of
from app.backbone.families.recognise import LOADERS, family_of_config
from app.backbone.source import bundled_folder

VOCABULARY = 8192
_SHAPE = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96}
_GQA = {**_SHAPE, "num_key_value_heads": 2}
_ROPE = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
_T5 = {"d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 3, "num_heads": 4, "decoder_start_token_id": 2}
_BART = {
    "d_model": 64,
    "max_position_embeddings": 256,
    **{f"{side}_{name}": of for side in ("encoder", "decoder") for name, of in (("layers", 2), ("ffn_dim", 96))},
    **{f"{side}_attention_heads": 4 for side in ("encoder", "decoder")},
    "decoder_start_token_id": 1,
    "forced_bos_token_id": None,
}
_BERT = {**_SHAPE, "max_position_embeddings": 200}
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
    "t5": ("t5", {**_T5, "num_decoder_layers": 4}),
    "t5_gated": ("t5", {**_T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "umt5": ("umt5", {**_T5, "num_decoder_layers": 2}),
    "bart": ("bart", _BART),
    "mbart": ("mbart", {**_BART, "scale_embedding": True}),
    "pegasus": ("pegasus", {**_BART, "decoder_start_token_id": 2}),
    "bert": ("bert", _BERT),
    "roberta": ("roberta", _BERT),
    "electra": ("electra", {**_BERT, "embedding_size": 32}),
    "distilbert": (
        "distilbert",
        {"dim": 64, "n_layers": 3, "n_heads": 4, "hidden_dim": 96, "max_position_embeddings": 200},
    ),
    "modernbert": (
        "modernbert",
        {**_SHAPE, "cls_token_id": 0, "sep_token_id": 1, "local_attention": 16, "global_attn_every_n_layers": 2},
    ),
}
# What the tokenizers of other families put around a text, and their mask token.
FRAMES = {
    **dict.fromkeys(("t5", "t5_gated", "umt5", "pegasus"), ("$A </s>", None)),
    **dict.fromkeys(("bart", "mbart"), ("<s> $A </s>", None)),
    "roberta": ("<s> $A </s>", AddedToken("<mask>", lstrip=True, special=True)),
    **dict.fromkeys(
        ("bert", "electra", "distilbert", "modernbert"), ("<s> $A </s>", AddedToken("[MASK]", special=True))
    ),
}


def build_model(name: str, *, seed: int = 7) -> Any:
    """The named model, float32, weights larger than usual so that attention has something to say."""
    kind, options = CONFIGURATIONS[name]
    vocabulary = VOCABULARY + 1 if name in FRAMES else VOCABULARY  # one more: the mask token
    config = CONFIG_MAPPING[kind](vocab_size=vocabulary, bos_token_id=0, eos_token_id=1, pad_token_id=2, **options)
    torch.manual_seed(seed)
    model = LOADERS[family_of_config(config, name)].from_config(config, dtype=torch.float32)
    gain = 1 if kind in ("t5", "umt5") else 4  # those begin with weights that are large enough
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(gain)
    return model.eval().requires_grad_(False)


def tokenizer_for(name: str) -> Any:
    """The bundled tokenizer, framing texts as the named model's would and with its mask token, if it has one."""
    tokenizer: Any = AutoTokenizer.from_pretrained(bundled_folder())
    tokenizer.mask_token = None
    if name in FRAMES:
        frame, mask = FRAMES[name]
        specials = [("<s>", 0), ("</s>", 1)]
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=frame, special_tokens=specials)
        if mask is not None:
            tokenizer.add_special_tokens({"mask_token": mask})
    return tokenizer


@cache
def build_backbone(name: str) -> Backbone:
    """The named model, probed, with the bundled tokenizer in the form it wants."""
    model = build_model(name)
    tokenizer = make_tokenizer(tokenizer_for(name), model)
    return wrap_model(model, tokenizer, name=name, identity=f"{name:0>64}")


def own_copy(name: str) -> Backbone:
    """The named backbone with a model of its own, whose layers a test may change."""
    backbone = build_backbone(name)
    model, probed = copy.deepcopy(backbone.model), backbone.probed
    changes: dict[str, Any] = {}
    for form in ("forward", "seq2seq", "masked"):
        found = getattr(probed, form)
        if found is not None:
            changes[form] = replace(found, model=model)
    if probed.masked is not None and probed.masked.head is not None:
        changes["masked"] = replace(changes["masked"], head=head_of(model))
    return replace(backbone, model=model, probed=replace(probed, **changes))
