"""The backbone: one frozen model with its tokenizer, loaded once, probed, identified by its fingerprint."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from app.backbone.fingerprint import fingerprint
from app.backbone.forward import Forward
from app.backbone.kv import KVShape
from app.backbone.openmp import give_team_back
from app.backbone.packed_runner import PackedRunner
from app.backbone.placement import choose_device, choose_dtype
from app.backbone.probe import ProbeResult, probe, probeable_context
from app.backbone.reference import ReferenceRunner
from app.backbone.runner import FastRunner, Runner
from app.backbone.source import BUNDLED, locate
from app.backbone.tokenizer import BackboneTokenizer
from app.errors import UnsupportedBackbone
from prompt_store.models import BackboneRef

_DEFAULT_CONTEXT = 2048  # for models whose configuration names no length (ALiBi)


@dataclass(frozen=True)
class BackboneConfig:
    """What to load and how. `cache`: folder for fingerprints and pinned hub revisions; None keeps nothing.
    `serving`: it will only answer, never train, and need not keep its weights in two forms."""

    source: str = BUNDLED
    revision: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    cache: Path | None = None
    serving: bool = False


@dataclass(frozen=True)
class Backbone:
    """A frozen model, ready. Build one with `load_backbone`, or with `wrap_model` from a model in memory."""

    name: str
    fingerprint: str
    model: Any
    tokenizer: BackboneTokenizer
    max_positions: int
    probed: ProbeResult

    @property
    def family(self) -> str:
        return "causal"

    @property
    def ref(self) -> BackboneRef:
        return BackboneRef(name=self.name, fingerprint=self.fingerprint, family="causal", hidden_size=self.hidden_size)

    @property
    def embedding(self) -> torch.nn.Module:
        module: torch.nn.Module = self.model.get_input_embeddings()
        return module

    @property
    def embedding_weight(self) -> Tensor:
        """[V, H], frozen."""
        weight: Tensor = self.embedding.weight  # type: ignore[assignment]  # an Embedding's weight is a Tensor
        return weight

    @cached_property
    def embedding_rms(self) -> float:
        """Root mean square of the word embeddings' coordinates: the scale of learning rates and of random prompts."""
        return float(self.embedding_weight.detach().float().pow(2).mean().sqrt())

    @cached_property
    def embedding_norm(self) -> float:
        """Median norm of the word embeddings: what a vector's own norm is held against."""
        return float(self.embedding_weight.detach().float().norm(dim=1).median())

    @property
    def hidden_size(self) -> int:
        """Width of the input embeddings, which is what prompts have (not always the model's hidden size)."""
        return int(self.embedding_weight.shape[1])

    @property
    def vocab_size(self) -> int:
        return int(self.embedding_weight.shape[0])

    @property
    def device(self) -> torch.device:
        return self.embedding_weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embedding_weight.dtype

    @property
    def kv_shape(self) -> KVShape | None:
        """What a token leaves in the layers; None where a prompt of keys and values cannot be given."""
        return self.probed.kv_shape

    @property
    def forward(self) -> Forward:
        """The fast forward. Raises UnsupportedBackbone where the probe refused it: training needs it."""
        if self.probed.forward is None:
            raise UnsupportedBackbone(f"this needs the fast path, which this model cannot take: {self.probed.reason}")
        return self.probed.forward

    @property
    def runner_name(self) -> str:
        if self.probed.decoder is not None:
            return PackedRunner.name
        return FastRunner.name if self.probed.forward is not None else ReferenceRunner.name

    def for_serving(self) -> Backbone:
        """This backbone with its weights in the packed form alone, where it has one; `forward` is gone then."""
        if self.probed.decoder is None:
            return self
        self.probed.decoder.release_plain_weights()
        give_team_back()  # the engine has a thread of its own
        return replace(self, probed=replace(self.probed, forward=None, reason="its weights are laid out for serving"))

    def runner(self, *, slots: int, places: int) -> Runner:
        """A runner with memory of its own for `slots` rows of up to `places` tokens."""
        if self.probed.decoder is not None:
            return PackedRunner(self.probed.decoder, slots=slots, places=places)
        if self.probed.forward is None:
            return ReferenceRunner(self.model, slots=slots, places=places)
        return FastRunner(self.probed.forward, slots=slots, places=places)


def load_backbone(config: BackboneConfig) -> Backbone:
    """Load, freeze and probe a causal language model.

    Raises:
        UnsupportedBackbone: files missing, not safetensors, wanting code, not a decoder, or failing the probe.
    """
    name, folder = locate(config.source, config.revision, cache=config.cache)
    transformers_logging.disable_progress_bar()
    try:
        model_config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (ValueError, OSError, KeyError) as error:
        raise UnsupportedBackbone(f"{name}: {str(error).splitlines()[0]}", param="model") from error
    if model_config.is_encoder_decoder or type(model_config) not in AutoModelForCausalLM._model_mapping:
        raise UnsupportedBackbone(f"{name}: `{model_config.model_type}` is not a decoder model", param="model")
    files = sorted(folder.glob("*.safetensors"))
    device = choose_device(config.device)
    dtype = choose_dtype(config.dtype, device, parameters=sum(file.stat().st_size for file in files) // 2)
    model = AutoModelForCausalLM.from_pretrained(
        folder, config=model_config, dtype=dtype, use_safetensors=True, trust_remote_code=False, low_cpu_mem_usage=True
    )
    backbone_tokenizer = make_tokenizer(tokenizer, model)
    identity = fingerprint(model.config.to_dict(), backbone_tokenizer.canonical_json(), files, cache=config.cache)
    backbone = wrap_model(model.to(device), backbone_tokenizer, name=name, identity=identity)
    return backbone.for_serving() if config.serving else backbone


def wrap_model(model: Any, tokenizer: BackboneTokenizer, *, name: str, identity: str) -> Backbone:
    """Freeze and probe a model that is in memory already."""
    model.eval().requires_grad_(False)
    config = model.config.get_text_config()
    context = probeable_context(config, _stated_context(config))
    vocabulary = min(tokenizer.vocab_size, model.get_input_embeddings().weight.shape[0])
    probed = probe(model, vocab_size=vocabulary, context=context)
    return Backbone(
        name=name, fingerprint=identity, model=model, tokenizer=tokenizer, max_positions=context, probed=probed
    )


def make_tokenizer(tokenizer: Any, model: Any) -> BackboneTokenizer:
    """The safe tokenizer, with every end token the model's generation settings name."""
    eos = getattr(model.generation_config, "eos_token_id", None)
    ends = [eos] if isinstance(eos, int) else list(eos or [])
    return BackboneTokenizer(tokenizer, vocab_size=model.get_input_embeddings().weight.shape[0], eos_ids=ends)


def _stated_context(config: Any) -> int:
    for key in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
        value = getattr(config, key, None)
        if isinstance(value, int) and value > 0:
            return value
    return _DEFAULT_CONTEXT
