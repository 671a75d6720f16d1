"""A frozen model made quicker to learn through, on a CPU. What it computes stays the same up to rounding.

Products: no frozen weight gets a gradient, so of a linear layer only y = x Wᵀ + b and dx = dy W are ever needed. Both
weights are laid out for oneDNN once (see linear.py): twice as fast in float32 as the plain products, and in bfloat16
several times for few rows, which the plain product would lay out anew each time.

Attention, of decoders: torch's fused kernel for CPUs is made for long rows; its bfloat16 backward takes four times as
long as three plain products on rows of some tens of tokens. Longer rows stay with it, for the memory.
"""

from __future__ import annotations

import copy
import logging
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from app.backbone.backbone import Backbone
from app.backbone.forward import TRAINING_ATTENTION
from app.backbone.linear import FrozenLinear, can_pack, frozen_linear
from app.backbone.placement import free_memory

PLAIN_PLACES = 256 * 256
"""Queries times keys of one row up to which attention is computed by plain products."""

_ROOM = 2.2
"""Of the weights: a copy for each direction, and the largest piece in the making."""

log = logging.getLogger(__name__)


def prepare_for_training(backbone: Backbone) -> Backbone:
    """The backbone, changed in place: its linear layers and its attention as above, where this machine gains by it and
    has the memory. Twice is as good as once."""
    model, probed = backbone.model, backbone.probed
    if backbone.device.type != "cpu" or not (probed.forward or probed.seq2seq or probed.masked):
        return backbone
    if probed.forward is not None and model.config._attn_implementation == "sdpa":
        _use_plain_attention(model)
    _pack_products(model)
    return backbone


def _use_plain_attention(model: Any) -> None:
    AttentionInterface.register(TRAINING_ATTENTION, attention)
    AttentionMaskInterface.register(TRAINING_ATTENTION, sdpa_mask)
    try:
        model.set_attn_implementation(TRAINING_ATTENTION)
    except ValueError as error:  # an architecture with an attention of its own
        log.info("training keeps the model's attention", extra={"reason": str(error).splitlines()[0]})


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it: query [B, H, T, D], key and value [B, G, S, D]; [B, T, H, D] and no weights.

    Plain products where the mask is additive and the rows are short, else torch's own.
    """
    queries, keys = query.shape[2], key.shape[2]
    special = options.get("dropout") or options.get("softcap") or options.get("position_bias") is not None
    additive = attention_mask is not None and attention_mask.is_floating_point()
    if special or not additive or queries * keys > PLAIN_PLACES:
        found: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **options
        )
        return found
    assert attention_mask is not None
    rows, groups, _, width = key.shape
    together = query.shape[1] // groups  # query heads that read the same keys
    grouped = query.reshape(rows, groups, together * queries, width) * (scaling or width**-0.5)
    scores = (grouped @ key.transpose(2, 3)).view(rows, groups, together, queries, keys) + attention_mask[:, :, None]
    shares = scores.softmax(-1, dtype=torch.float32).to(value.dtype).view(rows, groups, together * queries, keys)
    out = (shares @ value).view(rows, groups * together, queries, value.shape[3])
    return out.transpose(1, 2).contiguous(), None


def _pack_products(model: Any) -> None:
    inner, head = model.base_model, model.get_output_embeddings()  # what scores words reads the head's own weight
    layers = ((name, of) for name, of in inner.named_modules() if of is not head)
    plain = {name: of for name, of in layers if type(of) is nn.Linear and can_pack(of.weight)}
    free = free_memory()
    if free is not None and _ROOM * sum(of.weight.nbytes for of in plain.values()) > free:
        log.info("too little memory to lay the weights out for training")
        return
    for name, linear in plain.items():
        owner, _, last = name.rpartition(".")
        setattr(inner.get_submodule(owner), last, PackedLinear(linear))


class PackedLinear(nn.Module):
    """A frozen linear layer with its weight laid out for both directions. `weight` and `bias` stay the layer's own."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self._there = frozen_linear([linear.weight], [linear.bias])
        self._back = frozen_linear([linear.weight.detach().t().contiguous()], [None])

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Linear:
        """A plain layer of its own: what oneDNN laid out cannot be copied, and a copy is made to be changed."""
        plain = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        plain.weight, plain.bias = copy.deepcopy(self.weight, memo), copy.deepcopy(self.bias, memo)
        return plain.train(self.training)

    def forward(self, x: Tensor) -> Tensor:
        """[…, in] -> […, out]"""
        flat = x.reshape(-1, self.in_features)
        y: Tensor = _Product.apply(flat, self._there, self._back)
        return y.view(*x.shape[:-1], self.out_features)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, there: FrozenLinear, back: FrozenLinear) -> Tensor:
        ctx.back = back
        return there(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return ctx.back(gradients[0].contiguous()), None, None
