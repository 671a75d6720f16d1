"""The steps of a decode step whose shapes are fixed: one token for each row, nothing that depends on numbers the host
would have to read. The same calls in the same order each time, so a GPU can record them once (graphs.py).

Written for few kernels: at one token per row, each launch costs as much as its work. What all layers share (turning
angles, mask) is made once a step; queries and keys are turned together.

Shapes: B rows in slots 0 to B, S places seen, H query heads, G key/value heads, r = H / G, D head width, W hidden
width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from app.backbone.decoder_steps import Norms, PackedRows, TorchSteps
from app.backbone.slot_memory import Heads, SlotMemory


@dataclass(frozen=True)
class Standing:
    """Where the rows of a decode step stand, for all layers.

    cos, sin [B, 1, turned] float32, `sin` with the sign of the half it is multiplied with; mask [B, 1, 1, S], 0 where a
    row sees a place and -inf elsewhere
    """

    cos: Tensor
    sin: Tensor
    mask: Tensor

    @classmethod
    def of(cls, lengths: Tensor, heads: Heads, keys: int, dtype: torch.dtype) -> Standing:
        """Rows that hold `lengths` [B] tokens and get one more, none of which is longer than `keys` then."""
        cos, sin = heads.cos[lengths][:, None], heads.sin[lengths][:, None]
        hidden = torch.arange(keys, device=lengths.device) > lengths[:, None]  # [B, S]
        mask = torch.zeros(hidden.shape, dtype=dtype, device=lengths.device).masked_fill_(hidden, -torch.inf)
        return cls(torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1), mask[:, None, None])


class StaticSteps(TorchSteps):
    """`rows.info` is a `Standing`; rows sit in the slots they are numbered by."""

    name = "static"

    def __init__(self) -> None:
        self._norms: dict[int, Tensor] = {}  # norm weights in the model's dtype, which the fused kernel wants

    def add_rmsnorm(self, x: Tensor, delta: Tensor | None, weight: Tensor, epsilon: float) -> Tensor:
        if delta is not None:
            x += delta
        return F.rms_norm(x, weight.shape, self._in_dtype(weight, x.dtype), epsilon)

    def place(self, qkv: Tensor, rows: PackedRows, norms: Norms, memory: SlotMemory, layer: int) -> None:
        heads, standing = memory.heads, rows.info
        parts = qkv.view(qkv.shape[0], -1, heads.width)  # [B, H + 2 G, D]
        both, value = parts[:, : -heads.groups], parts[:, -heads.groups :]
        query, key = both[:, : -heads.groups], both[:, -heads.groups :]
        for part, norm in ((query, norms[0]), (key, norms[1])):
            if norm is not None:
                part.copy_(self.add_rmsnorm(part, None, norm, heads.epsilon))
        turned = standing.cos.shape[-1]
        x = both[..., :turned].float()
        both[..., :turned] = torch.addcmul(x * standing.cos, x.roll(turned // 2, -1), standing.sin)
        slots, places = rows.places[:, 1], rows.places[:, 2]
        memory.keys[layer][slots, :, places] = key
        memory.values[layer][slots, :, places] = value

    def attend(self, qkv: Tensor, rows: PackedRows, memory: SlotMemory, layer: int) -> Tensor:
        heads, count, keys = memory.heads, qkv.shape[0], rows.info.mask.shape[-1]
        query = qkv.view(count, -1, heads.width)[:, : heads.queries]
        answer = F.scaled_dot_product_attention(
            query.unflatten(1, (heads.groups, heads.repeat)),  # [B, G, r, D]: no key is repeated
            memory.keys[layer, :count, :, :keys],  # [B, G, S, D], where they lie
            memory.values[layer, :count, :, :keys],
            attn_mask=rows.info.mask.expand(-1, heads.groups, heads.repeat, -1),
            scale=heads.scale,
        )
        return answer.reshape(count, -1)

    def _in_dtype(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """Norm weights live as long as the decoder, which outlives these steps."""
        if id(weight) not in self._norms:
            self._norms[id(weight)] = weight.to(dtype)
        return self._norms[id(weight)]
