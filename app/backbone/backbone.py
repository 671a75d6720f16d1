"""The backbone: one frozen model with its tokenizer, loaded once, probed, identified by its fingerprint."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig
from transformers.utils import logging as transformers_logging

from app.backbone.families.masked_probe import masked_context, probe_masked
from app.backbone.families.masked_runner import MaskedRunner
from app.backbone.families.recognise import LOADERS, family_of_config, family_of_model
from app.backbone.families.seq2seq_probe import decoder_start, probe_seq2seq
from app.backbone.families.seq2seq_reference import Seq2SeqReference
from app.backbone.families.seq2seq_runner import Seq2SeqRunner
from app.backbone.fingerprint import fingerprint
from app.backbone.forward import Forward
from app.backbone.kv import KVShape
from app.backbone.openmp import give_team_back
from app.backbone.packed_runner import PackedRunner
from app.backbone.placement import check_map, choose_device, choose_dtype, parameter_count
from app.backbone.probe import ProbeResult, probe, probeable_context
from app.backbone.product_cache import bound_product_cache
from app.backbone.reference import ReferenceRunner
from app.backbone.runner import FastRunner, Runner
from app.backbone.source import BUNDLED, locate
from app.backbone.tokenizer import BackboneTokenizer
from app.backbone.tokenizer_files import load_tokenizer
from app.errors import UnsupportedBackbone
from prompt_store.models import BackboneRef, Family

_DEFAULT_CONTEXT = 2048  # for models whose configuration names no length (ALiBi)


@dataclass(frozen=True)
class BackboneConfig:
    """What to load and how. `cache`: folder for fingerprints and pinned hub revisions; None keeps nothing.
    `device_map`: over several GPUs, as transformers lays it out; then `device` does not count.
    `serving`: it will only answer, never train, and need not keep its weights in two forms."""

    source: str = BUNDLED
    revision: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    device_map: str = "none"
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
    family: Family = "causal"

    @property
    def ref(self) -> BackboneRef:
        return BackboneRef(
            name=self.name, fingerprint=self.fingerprint, family=self.family, hidden_size=self.hidden_size
        )

    @property
    def decoder_start(self) -> tuple[int, ...]:
        """What an encoder-decoder's decoder begins with."""
        return decoder_start(self.model, self.tokenizer)

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
        """What a token leaves in the layers; None where no leading keys and values can be given."""
        return self.probed.kv_shape if self.family == "causal" else None

    @property
    def decoder_kv_shape(self) -> KVShape | None:
        """The same on the decoder's side of an encoder-decoder, for `EncoderDecoderPrompt.prefix` and `.cross`."""
        return self.probed.kv_shape if self.family == "seq2seq" else None

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
        if self.family != "causal":
            return self.runner(slots=0, places=0).name
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
        if self.probed.masked is not None:
            return MaskedRunner(self.probed.masked, slots=slots, places=places)
        if self.probed.seq2seq is not None:
            return Seq2SeqRunner(self.probed.seq2seq, slots=slots, places=places)
        if self.family == "seq2seq":
            return Seq2SeqReference(self.model, self.decoder_start, slots=slots, places=places)
        if self.probed.decoder is not None:
            return PackedRunner(self.probed.decoder, slots=slots, places=places)
        if self.probed.forward is None:
            return ReferenceRunner(self.model, slots=slots, places=places)
        return FastRunner(self.probed.forward, slots=slots, places=places)


def load_backbone(config: BackboneConfig) -> Backbone:
    """Load, freeze and probe a language model of any family.

    Raises:
        UnsupportedBackbone: files missing, not safetensors, wanting code, weights missing, no language model, or
            failing the probe.
    """
    name, folder = locate(config.source, config.revision, cache=config.cache)
    transformers_logging.disable_progress_bar()
    try:
        model_config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        tokenizer = load_tokenizer(folder)
    except (ValueError, OSError, KeyError) as error:
        raise UnsupportedBackbone(f"{name}: {str(error).splitlines()[0]}", param="model") from error
    family = family_of_config(model_config, name)
    files = sorted(folder.glob("*.safetensors"))
    device = choose_device(config.device)
    dtype = choose_dtype(config.dtype, device, parameters=parameter_count(files))
    model, loaded = LOADERS[family].from_pretrained(
        folder,
        config=model_config,
        dtype=dtype,
        use_safetensors=True,
        trust_remote_code=False,
        low_cpu_mem_usage=True,
        output_loading_info=True,
        **({} if config.device_map == "none" else {"device_map": config.device_map}),
    )
    if loaded["missing_keys"]:
        missing = sorted(loaded["missing_keys"])[0]
        raise UnsupportedBackbone(f"{name}: the weights lack `{missing}`, a part of a {family} model", param="model")
    backbone_tokenizer = make_tokenizer(tokenizer, model)
    identity = fingerprint(
        model.config.to_dict(),
        backbone_tokenizer.canonical_json(),
        files,
        reading=_reading(family, model, backbone_tokenizer),
        cache=config.cache,
    )
    if config.device_map == "none":
        model = model.to(device)
    else:
        check_map(getattr(model, "hf_device_map", {}))
    backbone = wrap_model(model, backbone_tokenizer, name=name, identity=identity)
    return backbone.for_serving() if config.serving else backbone


def wrap_model(model: Any, tokenizer: BackboneTokenizer, *, name: str, identity: str) -> Backbone:
    """Freeze and probe a model that is in memory already."""
    bound_product_cache()
    model.eval().requires_grad_(False)
    context, probed = _probe(model, tokenizer)
    return Backbone(
        name=name,
        fingerprint=identity,
        model=model,
        tokenizer=tokenizer,
        max_positions=context,
        probed=probed,
        family=tokenizer.family,
    )


def _probe(model: Any, tokenizer: BackboneTokenizer) -> tuple[int, ProbeResult]:
    """(context, what the family's probe found)."""
    vocabulary = min(tokenizer.vocab_size, model.get_input_embeddings().weight.shape[0])
    config = model.config.get_text_config()
    context = _stated_context(config)
    if tokenizer.family == "masked":
        context = masked_context(model, context)
        return context, probe_masked(model, mask_id=tokenizer.mask_id, vocab_size=vocabulary, context=context)
    if tokenizer.family == "seq2seq":
        if hasattr(config, "relative_attention_num_buckets"):  # distances saturate: no position is too far
            context = max(context, _DEFAULT_CONTEXT)
        start = decoder_start(model, tokenizer)
        return context, probe_seq2seq(model, start=start, vocab_size=vocabulary, context=context)
    context = probeable_context(config, context)
    return context, probe(model, vocab_size=vocabulary, context=context)


def _reading(family: Family, model: Any, tokenizer: BackboneTokenizer) -> dict[str, Any] | None:
    """What changes the logits of a family's models beside configuration and weights."""
    if family == "causal":
        return None
    start = decoder_start(model, tokenizer) if family == "seq2seq" else ()
    return {"family": family, "pad": model.config.pad_token_id, "mask": tokenizer.mask_id, "start": start}


def make_tokenizer(tokenizer: Any, model: Any) -> BackboneTokenizer:
    """The safe tokenizer, with every end token the model's generation settings name."""
    eos = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ends = [eos] if isinstance(eos, int) else list(eos or [])
    vocabulary = model.get_input_embeddings().weight.shape[0]
    return BackboneTokenizer(tokenizer, vocab_size=vocabulary, eos_ids=ends, family=family_of_model(model))


def _stated_context(config: Any) -> int:
    for key in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
        value = getattr(config, key, None)
        if isinstance(value, int) and value > 0:
            return value
    return _DEFAULT_CONTEXT
