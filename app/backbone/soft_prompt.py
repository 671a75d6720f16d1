"""What a version has learned, in the forms a forward can read, and those forms as the named tensors of a blob.

    Tensor [P, H]          vectors at the template's slots (prompt tuning, P-tuning and all that fold to them)
    PrefixKV               keys and values of a leading slot, given layer by layer (prefix tuning)
    EncoderDecoderPrompt   what an encoder-decoder reads on its two sides

Everything that applies a prompt takes a `SoftPrompt`; all forms may carry gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from app.backbone.kv import PrefixKV

VECTORS, PREFIX = "prompt", "prefix"
DECODER_VECTORS, DECODER_PREFIX, CROSS_PREFIX = "decoder_prompt", "decoder_prefix", "cross_prefix"


@dataclass(frozen=True)
class EncoderDecoderPrompt:
    """The prompt of an encoder-decoder: `encoder` [P, H] vectors at the template's slots, `decoder` [Pd, H] vectors
    before the decoder's start token, `prefix` and `cross` keys and values in front of the decoder's own and of its
    cross-attention. Parts that were not learned are None."""

    encoder: Tensor | None = None
    decoder: Tensor | None = None
    prefix: PrefixKV | None = None
    cross: PrefixKV | None = None


SoftPrompt = Tensor | PrefixKV | EncoderDecoderPrompt


def to_tensors(prompt: SoftPrompt | None) -> dict[str, Tensor]:
    """The prompt's parts by their names in a blob; {} for a hand-written prompt."""
    if prompt is None:
        return {}
    if isinstance(prompt, Tensor):
        return {VECTORS: prompt}
    if isinstance(prompt, PrefixKV):
        return {PREFIX: prompt.data}
    parts: dict[str, Tensor | None] = {
        VECTORS: prompt.encoder,
        DECODER_VECTORS: prompt.decoder,
        DECODER_PREFIX: None if prompt.prefix is None else prompt.prefix.data,
        CROSS_PREFIX: None if prompt.cross is None else prompt.cross.data,
    }
    return {name: part for name, part in parts.items() if part is not None}


def from_tensors(tensors: Mapping[str, Tensor]) -> SoftPrompt | None:
    """The prompt that a blob's tensors are; the inverse of `to_tensors`."""
    if not tensors:
        return None
    if set(tensors) == {VECTORS}:
        return tensors[VECTORS]
    if set(tensors) == {PREFIX}:
        return PrefixKV(tensors[PREFIX])

    def given(name: str) -> PrefixKV | None:
        return PrefixKV(tensors[name]) if name in tensors else None

    return EncoderDecoderPrompt(
        tensors.get(VECTORS), tensors.get(DECODER_VECTORS), given(DECODER_PREFIX), given(CROSS_PREFIX)
    )


def parts_of(prompt: SoftPrompt | None) -> Iterator[Tensor]:
    """Its tensors, in a fixed order."""
    yield from to_tensors(prompt).values()


def map_parts(prompt: SoftPrompt, change: Callable[[Tensor], Tensor]) -> SoftPrompt:
    """The same prompt with every tensor changed: moved, cast, detached."""
    changed = from_tensors({name: change(part) for name, part in to_tensors(prompt).items()})
    assert changed is not None
    return changed


def place(prompt: SoftPrompt, device: torch.device, dtype: torch.dtype) -> SoftPrompt:
    """On a device, in a dtype."""
    return map_parts(prompt, lambda part: part.to(device, dtype))


def size_bytes(prompt: SoftPrompt | None) -> int:
    return sum(part.nbytes for part in parts_of(prompt))


def decoder_tokens(prompt: SoftPrompt | None) -> int:
    """Virtual tokens on the decoder's side of an encoder-decoder: they count in a row's limits like all others."""
    if not isinstance(prompt, EncoderDecoderPrompt):
        return 0
    given = sum(part.length for part in (prompt.prefix, prompt.cross) if part is not None)
    return given + (0 if prompt.decoder is None else prompt.decoder.shape[0])


def vectors_of(prompt: SoftPrompt | None) -> Tensor | None:
    """[P, H] at the template's slots, where the prompt has such vectors."""
    return (
        prompt.encoder if isinstance(prompt, EncoderDecoderPrompt) else prompt if isinstance(prompt, Tensor) else None
    )
