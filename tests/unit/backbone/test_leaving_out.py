"""Prompts of every form without some of their virtual tokens, and the templates that are left."""

from __future__ import annotations

import pytest
import torch

from app.backbone import parse_template
from app.backbone.kv import PrefixKV
from app.backbone.leaving_out import Place, leave_out, places_of, slot_of
from app.backbone.soft_prompt import EncoderDecoderPrompt, to_tensors
from app.errors import InvalidTemplate

TEMPLATE = parse_template("<prompt:2>{text} so<prompt:3>.")
VECTORS = torch.arange(10.0).view(5, 2)
KEYS = torch.arange(2 * 3 * 1 * 4 * 2, dtype=torch.float32).view(2, 3, 1, 4, 2)


def test_vectors_that_stay_keep_their_order_and_their_slots() -> None:
    template, left = leave_out(TEMPLATE, VECTORS, [Place("prompt", 1), Place("prompt", 3)])
    assert template.source == "<prompt:1>{text} so<prompt:2>."
    assert torch.equal(to_tensors(left)["prompt"], VECTORS[[0, 2, 4]])


def test_slot_without_vectors_is_gone_and_its_words_are_one_text() -> None:
    template, _ = leave_out(TEMPLATE, VECTORS, [Place("prompt", n) for n in (2, 3, 4)])
    assert template.source == "<prompt:2>{text} so."
    assert len(template.segments) == 2


def test_keys_and_values_are_left_out_along_their_places() -> None:
    template, left = leave_out(parse_template("<prompt:4>{text}"), PrefixKV(KEYS), [Place("prefix", 2)])
    assert template.source == "<prompt:3>{text}"
    assert isinstance(left, PrefixKV)
    assert torch.equal(left.data, KEYS[:, :, :, [0, 1, 3]])
    assert left.data.is_contiguous()


def test_decoder_side_has_places_of_its_own_and_no_slot() -> None:
    both = EncoderDecoderPrompt(encoder=VECTORS, decoder=VECTORS[:2], cross=PrefixKV(KEYS))
    assert [(place.part, place.index) for place in places_of(both)[4:9]] == [
        ("prompt", 4),
        ("decoder_prompt", 0),
        ("decoder_prompt", 1),
        ("cross_prefix", 0),
        ("cross_prefix", 1),
    ]
    assert [slot_of(TEMPLATE, place) for place in places_of(both)[:6]] == [0, 0, 1, 1, 1, None]
    gone = [Place("decoder_prompt", 0), Place("decoder_prompt", 1), Place("cross_prefix", 0)]
    template, left = leave_out(TEMPLATE, both, gone)
    assert template == TEMPLATE
    assert {name: tuple(part.shape) for name, part in to_tensors(left).items()} == {
        "prompt": (5, 2),
        "cross_prefix": (2, 3, 1, 3, 2),
    }


def test_nothing_left_is_refused() -> None:
    with pytest.raises(ValueError, match="none"):
        leave_out(parse_template("<prompt:1>{text}"), VECTORS[:1], [Place("prompt", 0)])


def test_words_that_would_become_a_slot_are_refused() -> None:
    template = parse_template("{text}<<prompt:1>prompt:3><prompt:4>")
    assert template.slots == (1, 4)
    with pytest.raises(InvalidTemplate):
        leave_out(template, VECTORS, [Place("prompt", 0)])


def test_hand_written_prompt_has_no_places() -> None:
    assert places_of(None) == []
