"""PEFT's prefix tuning of encoder-decoders, as it computes it.

PEFT stores a matrix [P, 2 L W] (W = G D), seen as 2 L slots of [P, G, D]. For an encoder-decoder it writes the slots
twice one behind the other and cuts the whole into fours, one four for each decoder layer: keys and values of its own
attention, then two that its cross-attention never gets, because the cache they are in is replaced by an empty one. So
layer l reads slots 4 l and 4 l + 1, modulo 2 L; half of the slots are read by nobody, and the layers l and l + L / 2
share theirs.

    https://github.com/huggingface/peft/blob/v0.21.2/src/peft/peft_model.py (`PeftModel.get_prompt`)
"""

from __future__ import annotations

import torch
from torch import Tensor

from app.backbone.kv import KVShape, PrefixKV
from app.backbone.soft_prompt import EncoderDecoderPrompt
from app.errors import InvalidPrompt


def prompt_from_peft(weight: Tensor, shape: KVShape) -> EncoderDecoderPrompt:
    """The prompt that PEFT makes of its `prompt_embeddings` [P, 2 L W] for a decoder of this shape.

    Raises InvalidPrompt where the matrix is of another shape.
    """
    slots = 2 * shape.layers
    if weight.dim() != 2 or weight.shape[1] != slots * shape.groups * shape.width:
        wanted = f"[P, 2 x {shape.layers} layers x {shape.groups} heads x {shape.width}]"
        raise InvalidPrompt(f"`prompt_embeddings` is {list(weight.shape)}; for this decoder it is {wanted}")
    by_slot = weight.view(-1, slots, shape.groups, shape.width).permute(1, 2, 0, 3)  # [2 L, G, P, D]
    keys = torch.tensor([4 * layer % slots for layer in range(shape.layers)], device=weight.device)
    return EncoderDecoderPrompt(prefix=PrefixKV(torch.stack((by_slot[keys], by_slot[keys + 1]))))
