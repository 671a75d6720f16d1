"""Keys and values per layer, and the one matrix that PEFT's prefix tuning makes of them.

A decoder's matrix is [P, 2 L W] (W = G D): for each virtual token layer 0's keys and values, then layer 1's, and so on.
An encoder-decoder's has the same shape and another meaning: `app/backbone/families/peft_prefix.py`. All of this moves
numbers and computes none: there and back is exact.
"""

from __future__ import annotations

import torch
from torch import Tensor

from app.backbone.kv import KVShape, PrefixKV
from app.errors import CapabilityMissing, InvalidPrompt


def prefix_of(matrix: Tensor, shape: KVShape) -> PrefixKV:
    """[P, 2 L G D] → keys and values [2, L, G, P, D] of a decoder. Raises InvalidPrompt for another width."""
    if matrix.dim() != 2 or matrix.shape[1] != 2 * shape.layers * shape.groups * shape.width:
        wanted = f"[P, 2 x {shape.layers} layers x {shape.groups} heads x {shape.width}]"
        raise InvalidPrompt(f"`prompt_embeddings` is {list(matrix.shape)}; this backbone takes {wanted}")
    by_layer = matrix.view(-1, shape.layers, 2, shape.groups, shape.width)  # [P, L, 2, G, D]
    return PrefixKV(by_layer.permute(2, 1, 3, 0, 4).contiguous())


def matrix_of(prefix: PrefixKV) -> Tensor:
    """The inverse of `prefix_of`: [2, L, G, P, D] → [P, 2 L G D]."""
    return prefix.data.permute(3, 1, 0, 2, 4).reshape(prefix.length, -1)


def seq2seq_matrix_of(prefix: PrefixKV) -> Tensor:
    """The matrix that gives an encoder-decoder these keys and values, zero in the slots that PEFT never reads.

    Raises CapabilityMissing where two layers read one slot in PEFT and differ here.
    """
    _, layers, groups, length, width = prefix.data.shape
    slots = prefix.data.new_zeros(2 * layers, groups, length, width)
    written: dict[int, int] = {}
    for layer in range(layers):
        at = 4 * layer % (2 * layers)
        other = written.setdefault(at, layer)
        if other != layer and not torch.equal(prefix.data[:, layer], prefix.data[:, other]):
            raise CapabilityMissing(
                f"in PEFT the layers {other} and {layer} of an encoder-decoder share their keys and values; here they "
                "have learned their own"
            )
        slots[at : at + 2] = prefix.data[:, layer]
    return slots.permute(2, 0, 1, 3).reshape(length, -1)
