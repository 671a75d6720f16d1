"""A prompt without some of what it has learned: fewer vectors at its slots, or fewer keys and values.

What is left moves together, and slots that hold nothing any more are gone, so that the rest is a prompt like any other:
it can be judged, answered with and published as it is.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import torch

from app.backbone.prompt import LoadedPrompt
from app.backbone.soft_prompt import PREFIX, VECTORS, SoftPrompt, from_tensors, to_tensors
from app.backbone.template import Template

_AT_SLOTS = (VECTORS, PREFIX)
"""Parts that stand at the template's slots; an encoder-decoder's others have no place in its words."""


@dataclass(frozen=True, order=True)
class Place:
    """One virtual token: the name of its part in the blob, and where it stands there, from 0."""

    part: str
    index: int


def places_of(learned: SoftPrompt | None) -> list[Place]:
    """Every virtual token of the prompt, in the order of its parts."""
    return [
        Place(name, index) for name, part in to_tensors(learned).items() for index in range(part.shape[_axis(part)])
    ]


def slot_of(template: Template, place: Place) -> int | None:
    """Which of the template's slots the virtual token stands in, from 0; None for those on a decoder's side."""
    if place.part not in _AT_SLOTS:
        return None
    last = 0
    for slot, size in enumerate(template.slots):
        last += size
        if place.index < last:
            return slot
    raise IndexError(place.index)


def leave_out(template: Template, learned: SoftPrompt, gone: Collection[Place]) -> tuple[Template, SoftPrompt]:
    """The template and the prompt without the virtual tokens `gone`; copies, in the dtype and on the device of
    `learned`.

    Raises ValueError where nothing would be left, InvalidTemplate where the words around a slot that is gone would
    come to mean another one.
    """
    sizes = list(template.slots)
    for place in set(gone):
        slot = slot_of(template, place)
        if slot is not None:
            sizes[slot] -= 1
    tensors = {}
    for name, part in to_tensors(learned).items():
        axis = _axis(part)
        kept = [index for index in range(part.shape[axis]) if Place(name, index) not in gone]
        if kept:
            tensors[name] = part.index_select(axis, torch.tensor(kept, device=part.device))
    left = from_tensors(tensors)
    if left is None:
        raise ValueError("a prompt without any virtual token is none")
    return template.resized(sizes), left


def loaded_without(prompt: LoadedPrompt, place: Place) -> LoadedPrompt:
    """The same version without one virtual token, under a digest of its own; without its only one, its bare words.
    Raises as `leave_out` does."""
    assert prompt.learned is not None
    template, learned = prompt.template.without_slots(), None
    if len(places_of(prompt.learned)) > 1:
        template, learned = leave_out(prompt.template, prompt.learned, (place,))
    digest = f"{prompt.digest} without {place.part} {place.index}"
    return replace(prompt, template=template, learned=learned, digest=digest, golden=())


def _axis(part: torch.Tensor) -> int:
    """Along which axis virtual tokens follow one another: [P, H] or [2, L, G, P, D]."""
    return 3 if part.dim() == 5 else 0
