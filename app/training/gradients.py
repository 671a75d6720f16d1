"""Gradients of several prompts' losses from forwards over the union of their rows.

The model is frozen and rows do not see each other, so the gradients of different prompts do not mix: one backward
through the sum of all losses gives each prompt its own. Work that does not depend on the rows is done once for all
parts: a learner's prompt, and the keys and values of what rows begin with. Each is cut off from its graph, collects the
gradients of the parts, and passes them on at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from app.backbone import Backbone, SoftPrompt, Verbalizer
from app.backbone.kv import PrefixKV
from app.backbone.scoring import score_rows
from app.backbone.shared_prefix import SharedPrefixes, share_prefixes
from app.backbone.soft_prompt import map_parts, parts_of
from app.training.examples import Encoded
from app.training.objective import count_terms, summed_loss

WASTE, WASTE_ELSEWHERE = {"cpu": 96}, 4096
"""Tokens of padding that cost as much as another forward and backward do before they compute anything, by device."""


class HasLength(Protocol):
    @property
    def length(self) -> int: ...


Long = TypeVar("Long", bound=HasLength)


@dataclass(frozen=True)
class Lesson:
    """One prompt's part of a step: the prompt with its graph, its rows, and what the rows are asked."""

    prompt: SoftPrompt
    rows: Sequence[Encoded]
    verbalizer: Verbalizer | None


@dataclass(frozen=True)
class _Asked:
    """One row, whose it is, and the tokens it adds to a forward."""

    lesson: int
    row: Encoded
    length: int


Fill = Callable[[Backbone, Sequence[Lesson], Sequence[int], int], Tensor]
"""What computes a step's gradients: `fill_gradients`, or several processes together (parallel.py)."""


def accumulate(backbone: Backbone, lessons: Sequence[Lesson], *, tokens: int, fill: Fill | None = None) -> list[float]:
    """Add the gradient of each lesson's mean loss to its prompt's parameters; return those losses.

    `tokens` of one forward at most, padding included, and at least one row.
    """
    cut = [replace(lesson, prompt=map_parts(lesson.prompt, _leaf)) for lesson in lessons]
    terms = [count_terms(lesson.rows) for lesson in lessons]
    losses = (fill or fill_gradients)(backbone, cut, terms, tokens)
    for lesson, of in zip(lessons, cut, strict=True):
        _pass_on(list(parts_of(lesson.prompt)), list(parts_of(of.prompt)))
    found: list[float] = losses.tolist()
    return found


def fill_gradients(backbone: Backbone, lessons: Sequence[Lesson], terms: Sequence[int], tokens: int) -> Tensor:
    """Put the gradient of each lesson's summed loss divided by its `terms` into its prompt's tensors, which are leaves;
    those losses [n]."""
    leaves = [lesson.prompt for lesson in lessons]
    owners = [i for i, lesson in enumerate(lessons) for _ in lesson.rows]
    rows = [row for lesson in lessons for row in lesson.rows]
    whole = share_prefixes(backbone, [one.row for one in rows], [leaves[i] for i in owners])
    shared = SharedPrefixes({key: PrefixKV(_leaf(kv.data.float())) for key, kv in whole.found.items()}, whole.vectors)
    asked = [_Asked(i, row, _own_length(row, shared, leaves[i])) for i, row in zip(owners, rows, strict=True)]
    totals = [torch.zeros((), device=backbone.device) for _ in lessons]
    for part in in_parts(asked, tokens, waste=WASTE.get(backbone.device.type, WASTE_ELSEWHERE)):
        losses = _losses(backbone, lessons, leaves, part, shared)
        torch.stack([loss / terms[i] for i, loss in losses.items()]).sum().backward()
        for i, loss in losses.items():
            totals[i] += loss.detach() / terms[i]
    _pass_on([kv.data for kv in whole.found.values()], [kv.data for kv in shared.found.values()])
    return torch.stack(totals)


def _losses(
    backbone: Backbone,
    lessons: Sequence[Lesson],
    prompts: Sequence[SoftPrompt],
    part: Sequence[_Asked],
    shared: SharedPrefixes,
) -> Mapping[int, Tensor]:
    """Summed loss of each lesson that has rows in this part."""
    scores = score_rows(
        backbone,
        [one.row.row for one in part],
        [prompts[one.lesson] for one in part],
        [lessons[one.lesson].verbalizer or one.row.answer for one in part],
        shared=shared,
    )
    mine: dict[int, list[int]] = {}
    for place, one in enumerate(part):
        mine.setdefault(one.lesson, []).append(place)
    return {
        i: summed_loss(lessons[i].verbalizer, [scores[place] for place in places], [part[p].row for p in places])
        for i, places in mine.items()
    }


def in_parts(rows: Sequence[Long], tokens: int, *, waste: int = 1 << 30) -> list[list[Long]]:
    """The rows by length, in pieces of at most `tokens` tokens, padding included, and at least one row. A piece ends
    where one more row would pad the others by more than `waste` tokens."""
    pieces: list[list[Long]] = []
    for one in sorted(rows, key=lambda one: one.length):
        last = pieces[-1] if pieces else []
        padding = len(last) * (one.length - last[-1].length) if last else 0
        if last and padding <= waste and (len(last) + 1) * one.length <= tokens:
            last.append(one)
        else:
            pieces.append([one])
    return pieces


def _own_length(one: Encoded, shared: SharedPrefixes, prompt: SoftPrompt) -> int:
    """Tokens that this row adds to a forward."""
    return one.length - (one.row.prefix if shared.of(one.row, prompt) is not None else 0)


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_()


def _pass_on(outer: Sequence[Tensor], leaves: Sequence[Tensor]) -> None:
    """Send what the leaves have collected back through the tensors that they were cut from."""
    pairs = [
        (one, leaf.grad.to(one.dtype))
        for one, leaf in zip(outer, leaves, strict=True)
        if leaf.grad is not None and one.requires_grad
    ]
    if pairs:
        torch.autograd.backward([one for one, _ in pairs], [gradient for _, gradient in pairs])
