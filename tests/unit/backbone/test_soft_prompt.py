from __future__ import annotations

import pytest
import torch

from app.backbone.kv import PrefixKV
from app.backbone.prompt import prompt_shapes
from app.backbone.soft_prompt import (
    EncoderDecoderPrompt,
    SoftPrompt,
    from_tensors,
    map_parts,
    size_bytes,
    to_tensors,
    vectors_of,
)
from app.backbone.template import parse_template
from app.errors import InvalidPrompt
from tests.architectures import build_backbone

VECTORS = torch.randn(3, 8)
KEYS = PrefixKV(torch.randn(2, 4, 2, 3, 6))
FORMS: list[SoftPrompt] = [
    VECTORS,
    KEYS,
    EncoderDecoderPrompt(encoder=VECTORS, decoder=VECTORS[:1]),
    EncoderDecoderPrompt(prefix=KEYS, cross=PrefixKV(KEYS.data + 1)),
]


@pytest.mark.parametrize("prompt", FORMS)
def test_a_prompt_written_as_tensors_reads_back_the_same(prompt: SoftPrompt) -> None:
    named = to_tensors(prompt)
    again = to_tensors(from_tensors(named))
    assert list(again) == list(named)
    assert all(torch.equal(again[name], part) for name, part in named.items())
    assert type(from_tensors(named)) is type(prompt)


def test_a_hand_written_prompt_has_no_tensors() -> None:
    assert (from_tensors({}), to_tensors(None), size_bytes(None), vectors_of(None)) == (None, {}, 0, None)


@pytest.mark.parametrize("prompt", FORMS)
def test_a_change_reaches_every_part(prompt: SoftPrompt) -> None:
    doubled = to_tensors(map_parts(prompt, lambda part: part * 2))
    assert all(torch.equal(doubled[name], 2 * part) for name, part in to_tensors(prompt).items())
    assert size_bytes(map_parts(prompt, torch.Tensor.half)) * 2 == size_bytes(prompt)


def test_only_vectors_stand_at_a_templates_slots() -> None:
    assert [vectors_of(prompt) is VECTORS for prompt in FORMS] == [True, False, True, False]


@pytest.mark.parametrize(
    "parts",
    [
        EncoderDecoderPrompt(prefix=PrefixKV(torch.zeros(5, 4))),
        EncoderDecoderPrompt(cross=PrefixKV(torch.zeros(2, 4, 2, 3))),
        EncoderDecoderPrompt(decoder=torch.zeros(())),
        EncoderDecoderPrompt(decoder=torch.zeros(3)),
    ],
)
def test_shapes_of_a_decoders_part_with_other_dimensions_are_refused(parts: EncoderDecoderPrompt) -> None:
    with pytest.raises(InvalidPrompt, match="dimensions"):
        prompt_shapes(parts, parse_template("{text}"), build_backbone("t5"))
