"""Which family a model belongs to: read off its configuration before it is loaded, and off its class afterwards."""

from __future__ import annotations

from typing import Any

from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

from app.errors import UnsupportedBackbone
from prompt_store.models import Family

LOADERS = {"causal": AutoModelForCausalLM, "seq2seq": AutoModelForSeq2SeqLM, "masked": AutoModelForMaskedLM}


def family_of_config(config: Any, name: str) -> Family:
    """The family of a configuration.

    Many architectures come as a masked model and as a decoder (BERT, RoBERTa): the class that the weights were saved
    from decides; without a word about it, such a model is masked unless it says `is_decoder`.

    Raises:
        UnsupportedBackbone: no language model of a known family.
    """
    kind = type(config)
    saved = " ".join(getattr(config, "architectures", None) or ())
    if config.is_encoder_decoder:
        if kind in AutoModelForSeq2SeqLM._model_mapping and "ForMaskedLM" not in saved:
            return "seq2seq"
        raise UnsupportedBackbone(f"{name}: `{config.model_type}` is not a text-to-text model", param="model")
    masked, causal = kind in AutoModelForMaskedLM._model_mapping, kind in AutoModelForCausalLM._model_mapping
    writes = "ForCausalLM" in saved or "LMHeadModel" in saved or getattr(config, "is_decoder", False)
    if masked and not (causal and writes):
        return "masked"
    if causal:
        return "causal"
    raise UnsupportedBackbone(
        f"{name}: `{config.model_type}` is not a language model: a decoder, an encoder-decoder or a masked model",
        param="model",
    )


def family_of_model(model: Any) -> Family:
    """The family of a model in memory. Asks for the one class in question: all of them would be imported."""
    if model.config.is_encoder_decoder:
        return "seq2seq"
    kind, masked = type(model.config), AutoModelForMaskedLM._model_mapping
    return "masked" if kind in masked and type(model) is masked[kind] else "causal"
