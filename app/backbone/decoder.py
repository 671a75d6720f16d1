"""A forward of our own for decoders of Llama's shape (Llama, Mistral, Qwen 2 and 3): the model's weights, no padding.

All tokens of a batch lie one behind the other, whatever rows they belong to, so that every matrix product has exactly
the needed tokens; attention reads each row at its exact length. transformers' model stays the measure: the load probe
(probe.py) holds this forward to it before it serves.

Pre-norm blocks with RMS norms, rotary positions, grouped-query attention and a gated SiLU feed-forward
(Touvron et al. 2023, arXiv 2302.13971; Ainslie et al. 2023, arXiv 2305.13245).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from app.backbone.decoder_steps import DecoderSteps, Norms, PackedRows, TorchSteps
from app.backbone.freed_memory import give_back_freed_memory, keep_freed_memory
from app.backbone.linear import FrozenLinear, frozen_linear, rounded
from app.backbone.native.product import SharedLinear, shared_linear
from app.backbone.native.steps import native_steps
from app.backbone.placement import free_memory
from app.backbone.slot_memory import Heads, SlotMemory

MODEL_TYPES = frozenset({"llama", "mistral", "qwen2", "qwen3"})
_ROOM = 1.2  # weights and the largest piece in the making
_SHARED_HEAD_BYTES = 64 << 20  # an output weight that is also the embedding, where it takes a copy to be fast
_FEW_READ = 4  # in the last layer, queries are computed apart where at most one token in so many is read
_PIECE_TOKENS, _PIECE_BYTES = 256, 4 << 20  # of the feed-forward on a CPU: enough for the product, small for the cache


@dataclass(frozen=True)
class Reads:
    """The tokens whose logits are wanted: `tokens` [N] int64, in the order of the rows, and how the rows look with
    these tokens alone."""

    tokens: Tensor
    rows: PackedRows


@dataclass(frozen=True)
class Block:
    """One layer: weights fused over what shares an input."""

    input_norm: Tensor
    qkv: FrozenLinear
    head_norms: Norms
    attention_out: FrozenLinear
    inner_norm: Tensor
    gate_up: FrozenLinear
    down: FrozenLinear


class Decoder:
    """The weights of a model in our own form, with the steps that fit its dtype and device."""

    def __init__(self, model: Any, *, steps: DecoderSteps | None = None) -> None:
        config = model.config.get_text_config()
        weight = model.get_input_embeddings().weight
        self.embedding = model.get_input_embeddings()
        self.layers = len(model.model.layers)
        self.epsilon = float(config.rms_norm_eps)
        width = model.model.layers[0].self_attn.head_dim
        self.steps = steps or native_steps(weight.dtype, weight.device, width) or TorchSteps()
        self.blocks = [_block(layer) for layer in model.model.layers]
        self.last_keys_values = _fuse(model.model.layers[-1].self_attn, "k_proj", "v_proj")
        self.norm = _float(model.model.norm.weight)
        self.head = _head(model)
        self.vocabulary = int(model.get_output_embeddings().weight.shape[0])
        self.dtype, self.device = weight.dtype, weight.device
        self._model = model
        middle = 2 * model.model.layers[0].mlp.down_proj.in_features * weight.element_size()
        self._piece = max(_PIECE_TOKENS, rounded(_PIECE_BYTES // middle)) if self.device.type == "cpu" else 1 << 30

    def memory(self, *, slots: int, places: int) -> SlotMemory:
        """Room for the keys and values of `slots` rows of up to `places` tokens."""
        heads = _heads(self._model, places)
        return SlotMemory(heads, layers=self.layers, slots=slots, places=places, dtype=self.dtype, device=self.device)

    def release_plain_weights(self) -> None:
        """Let go of the model's own copies of what is fused here; the model keeps shapes and cannot run any more."""
        model = self._model
        fused = [model.get_output_embeddings()] if self.head.packed and not _is_shared(model) else []
        for layer in model.model.layers:
            fused += [
                module for part in (layer.self_attn, layer.mlp) for module in part.children() if _is_linear(module)
            ]
        for module in fused:
            for name, parameter in module.named_parameters(recurse=False):
                setattr(module, name, torch.nn.Parameter(parameter.detach().to("meta"), requires_grad=False))
        if self.device.type == "cpu":  # what stays leaves the mapped file, so that none of its pages count as ours
            for parameter in model.parameters():
                parameter.data = parameter.data.clone()
            self.head = self.head if self.head.packed else _head(model)
            give_back_freed_memory()
            keep_freed_memory()

    def run(
        self,
        x: Tensor,
        rows: PackedRows,
        memory: SlotMemory,
        reads: Reads | None = None,
        *,
        steps: DecoderSteps | None = None,
    ) -> Tensor:
        """Logits, in the model's dtype, of the tokens that are read (None: all, in order), from embeddings x [n, W],
        which this uses up; keys and values go to `memory`.  [N, V]

        Behind the last layer's keys and values, only the tokens that are read are computed. `steps`: other than the
        decoder's own.
        """
        steps, epsilon = steps or self.steps, self.epsilon
        delta: Tensor | None = None
        for layer, block in enumerate(self.blocks):
            y = steps.add_rmsnorm(x, delta, block.input_norm, epsilon)
            if reads is not None and layer == self.layers - 1:
                qkv, x = self._place_last(y, rows, reads, memory, steps), x[reads.tokens]
                rows = reads.rows
            else:
                qkv = block.qkv(y)
                steps.place(qkv, rows, block.head_norms, memory, layer)
            delta = block.attention_out(steps.attend(qkv, rows, memory, layer))
            delta = self._feed_forward(block, x, steps.add_rmsnorm(x, delta, block.inner_norm, epsilon))
        return self.head(steps.add_rmsnorm(x, delta, self.norm, epsilon))

    def _place_last(self, y: Tensor, rows: PackedRows, reads: Reads, memory: SlotMemory, steps: DecoderSteps) -> Tensor:
        """The last layer's keys and values of all tokens go to `memory`. Returns qkv of those that are read."""
        block, layer = self.blocks[-1], self.layers - 1
        if reads.tokens.shape[0] * _FEW_READ > y.shape[0]:
            qkv = block.qkv(y)
            steps.place(qkv, rows, block.head_norms, memory, layer)
            return qkv[reads.tokens]
        qkv = block.qkv(y[reads.tokens])
        steps.place(qkv, reads.rows, block.head_norms, memory, layer)
        steps.place(self.last_keys_values(y), rows, block.head_norms, memory, layer)
        return qkv

    def _feed_forward(self, block: Block, x: Tensor, y: Tensor) -> Tensor | None:
        """What to add to x [n, W], from y [n, W]. A long batch goes in pieces whose wide middle stays in the
        processor's cache; each is added to x at once, and nothing is left to add (None)."""
        if y.shape[0] <= self._piece:
            return block.down(self.steps.silu_mul(block.gate_up(y)))
        for part, to in zip(y.split(self._piece), x.split(self._piece), strict=True):
            to.add_(block.down(self.steps.silu_mul(block.gate_up(part))))
        return None


def is_llama_shaped(model: Any) -> bool:
    """Whether the configuration promises a shape that `Decoder` computes; the probe then shows whether it is true."""
    config = model.config.get_text_config()
    known = config.model_type in MODEL_TYPES and getattr(config, "hidden_act", None) in ("silu", "swish")
    return known and hasattr(getattr(model, "model", None), "layers")


def has_room(model: Any) -> bool:
    """Whether the fused weights, which for a while stand beside the model's own, fit into the memory that is free."""
    size = sum(p.numel() * p.element_size() for p in model.model.layers.parameters()) * _ROOM
    device = model.get_input_embeddings().weight.device
    if device.type == "cuda":
        return size <= torch.cuda.mem_get_info(device)[0]
    free = free_memory()
    return free is None or size <= free


def _heads(model: Any, places: int) -> Heads:
    config, attention = model.config.get_text_config(), model.model.layers[0].self_attn
    width, device = attention.head_dim, model.get_input_embeddings().weight.device
    positions = torch.arange(places, device=device)[None]
    cos, sin = model.model.rotary_emb(torch.zeros(1, device=device), positions)  # [1, S, turned], both halves equal
    half = cos.shape[-1] // 2
    query_norm = getattr(attention, "q_norm", None)
    return Heads(
        queries=config.num_attention_heads,
        groups=config.num_key_value_heads,
        width=width,
        scale=float(attention.scaling),
        cos=cos[0, :, :half].float().contiguous(),
        sin=sin[0, :, :half].float().contiguous(),
        epsilon=float(query_norm.variance_epsilon) if query_norm is not None else 0.0,
    )


def _block(layer: Any) -> Block:
    attention, mlp = layer.self_attn, layer.mlp
    return Block(
        input_norm=_float(layer.input_layernorm.weight),
        qkv=_fuse(attention, "q_proj", "k_proj", "v_proj"),
        head_norms=tuple(  # type: ignore[arg-type]  # two of them
            _float(getattr(attention, name).weight) if hasattr(attention, name) else None
            for name in ("q_norm", "k_norm")
        ),
        attention_out=_fuse(attention, "o_proj"),
        inner_norm=_float(layer.post_attention_layernorm.weight),
        gate_up=_fuse(mlp, "gate_proj", "up_proj"),
        down=_fuse(mlp, "down_proj"),
    )


def _fuse(module: Any, *names: str) -> FrozenLinear:
    parts = [getattr(module, name) for name in names]
    return frozen_linear([part.weight for part in parts], [part.bias for part in parts])


def _head(model: Any) -> FrozenLinear | SharedLinear:
    head = model.get_output_embeddings()
    size = head.weight.numel() * head.weight.element_size()
    shared = shared_linear(head.weight) if _is_shared(model) and head.bias is None else None
    if shared is not None:
        return shared
    return frozen_linear([head.weight], [head.bias], pack=not _is_shared(model) or size <= _SHARED_HEAD_BYTES)


def _is_shared(model: Any) -> bool:
    """Whether the output weight is also the word embedding."""
    return bool(model.get_output_embeddings().weight is model.get_input_embeddings().weight)


def _is_linear(module: Any) -> bool:
    return isinstance(module, torch.nn.Linear)


def _float(weight: Tensor) -> Tensor:
    return weight.detach().to(torch.float32, copy=True).contiguous()  # never a part of the mapped file
