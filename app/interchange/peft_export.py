"""A published prompt as an adapter of PEFT, which gives the same logits there; or the reason why it cannot be one.

PEFT puts a prompt in front of the text and of the tokenizer's own begin token, in one piece, and knows nothing of
templates and label words: those go along as `Wording`.
"""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from app.backbone import Backbone, LoadedPrompt, SoftPrompt
from app.backbone.kv import KVShape, PrefixKV
from app.backbone.soft_prompt import EncoderDecoderPrompt
from app.backbone.template import Slot
from app.errors import CapabilityMissing
from app.interchange.adapter_config import PROMPT_EMBEDDINGS
from app.interchange.adapter_files import AdapterFiles
from app.interchange.prefix_layout import matrix_of, seq2seq_matrix_of
from app.interchange.tensor_file import write_tensors

_HEADS = ("num_attention_heads", "n_head", "num_heads", "encoder_attention_heads")
_LAYERS = ("num_hidden_layers", "num_layers", "n_layer")


def to_adapter(prompt: LoadedPrompt, backbone: Backbone) -> AdapterFiles:
    """PROMPT_TUNING for vectors, whatever they were learned by; PREFIX_TUNING for keys and values.

    Raises CapabilityMissing for what PEFT has no form for; the message says what it is.
    """
    learned = prompt.learned
    if learned is None:
        raise _no_form("is written by hand: there is nothing learned in it", prompt)
    if backbone.family == "masked":
        raise _no_form("belongs to a masked model; there PEFT trains a head together with the prompt", prompt)
    _check_places(prompt, learned)
    kind, count, matrix = _matrix(prompt, learned)
    config = _config(kind, count, matrix, backbone)
    words = prompt.verbalizer
    return AdapterFiles(
        config=config,
        model=write_tensors({PROMPT_EMBEDDINGS: matrix}),
        template=prompt.template.source,
        verbalizer=None if words is None else {k: list(of) for k, of in zip(words.labels, words.words, strict=True)},
    )


def _check_places(prompt: LoadedPrompt, learned: SoftPrompt) -> None:
    slots = len(prompt.template.slots)
    if slots > 1:
        raise _no_form(f"has {slots} slots, and PEFT puts all vectors in one place", prompt)
    if slots and not isinstance(prompt.template.segments[0], Slot):
        raise _no_form("has its slot behind words of the template, and PEFT puts all vectors first", prompt)
    if prompt.bos == "first":
        raise _no_form("has the begin token before its vectors, and PEFT puts all vectors first", prompt)
    if isinstance(learned, EncoderDecoderPrompt) and slots and learned.prefix is not None:
        raise _no_form("has vectors and keys and values at once, and an adapter of PEFT is one of them", prompt)


def _matrix(prompt: LoadedPrompt, learned: SoftPrompt) -> tuple[Literal["PROMPT_TUNING", "PREFIX_TUNING"], int, Tensor]:
    """(PEFT's type, virtual tokens, `prompt_embeddings`)."""
    if isinstance(learned, Tensor):
        return "PROMPT_TUNING", learned.shape[0], learned
    if isinstance(learned, PrefixKV):
        return "PREFIX_TUNING", learned.length, matrix_of(learned)
    if learned.decoder is not None:
        raise _no_form("has vectors on the decoder's side, which PEFT's prompt tuning does not read", prompt)
    if learned.cross is not None:
        raise _no_form("has keys and values beside the encoder's, which PEFT does not give", prompt)
    assert learned.prefix is not None
    return "PREFIX_TUNING", learned.prefix.length, seq2seq_matrix_of(learned.prefix)


def _config(kind: str, count: int, matrix: Tensor, backbone: Backbone) -> dict[str, Any]:
    """The fields that every version of PEFT since 0.4 knows, and no other."""
    seq2seq = backbone.family == "seq2seq"
    config: dict[str, Any] = {
        "base_model_name_or_path": backbone.name,
        "inference_mode": True,
        "num_transformer_submodules": 2 if seq2seq and kind == "PREFIX_TUNING" else 1,
        "num_virtual_tokens": count,
        "peft_type": kind,
        "revision": None,
        "task_type": "SEQ_2_SEQ_LM" if seq2seq else "CAUSAL_LM",
    }
    if kind == "PREFIX_TUNING":
        shape = backbone.decoder_kv_shape if seq2seq else backbone.kv_shape
        assert shape is not None
        return config | _prefix_config(shape)
    described = backbone.model.config.get_text_config().to_dict()
    return config | {
        "num_attention_heads": _first(described, _HEADS),
        "num_layers": _first(described, _LAYERS),
        "prompt_tuning_init": "RANDOM",
        "prompt_tuning_init_text": None,
        "token_dim": matrix.shape[1],
        "tokenizer_name_or_path": None,
    }


def _prefix_config(shape: KVShape) -> dict[str, Any]:
    width = shape.groups * shape.width
    return {
        "encoder_hidden_size": width,
        "num_attention_heads": shape.groups,
        "num_layers": shape.layers,
        "prefix_projection": False,
        "token_dim": width,
    }


def _first(fields: dict[str, Any], names: tuple[str, ...]) -> int | None:
    """None where the model has other words for it: PEFT then looks for itself."""
    return next((int(fields[name]) for name in names if isinstance(fields.get(name), int)), None)


def _no_form(why: str, prompt: LoadedPrompt) -> CapabilityMissing:
    return CapabilityMissing(f"{prompt.task}@{prompt.version} {why}", param="number")
