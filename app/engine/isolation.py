"""A runner whose failures stay with the rows that cause them.

A batch that raises is run again in halves, down to single rows; a row that raises alone gets logits that are not
finite, which is how every failed row shows itself. Running out of memory is met the same way, and remembered for a
while, so that not every step has to fail first.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from app.backbone.runner import Prefilled, PrefillItem, Runner

log = logging.getLogger(__name__)

# What a model may raise for one batch without the engine being broken. Out of memory is a RuntimeError on a GPU.
ROW_ERRORS = (RuntimeError, ValueError, IndexError, ArithmeticError, MemoryError)
_RECOVERY = 256  # decode steps in parts after which parts twice as large are tried


@dataclass(frozen=True)
class _Step:
    """A decode step that is taken apart; `order[slot]` is the row that sits there now."""

    tokens: Tensor
    lengths: Tensor
    longest: int
    order: list[int]


class IsolatingRunner:
    """`prefill` and `decode` of a runner that has one slot more than rows: `spare` is for changing places."""

    def __init__(self, runner: Runner, *, vocabulary: int, device: torch.device) -> None:
        self._runner = runner
        self._nothing = torch.full((1, vocabulary), torch.nan, device=device)  # logits of a row that failed
        self._spare = runner.slots - 1
        self._most = self._spare  # rows in one decode call
        self._calm = 0

    def prefill(self, start: int, items: Sequence[PrefillItem]) -> Prefilled:
        try:
            return self._runner.prefill(start, items)
        except ROW_ERRORS as error:
            _make_room(error)
            if len(items) == 1:
                log.error("a row failed in prefill", extra={"error": repr(error)})
                return Prefilled(self._nothing, [None], tokens=0, padding=0)
        half = len(items) // 2  # a run of rows that share text begins anew in the second half
        second = [replace(items[half], trunk=0), *items[half + 1 :]]
        return _join(self.prefill(start, items[:half]), self.prefill(start + half, second))

    def decode(self, tokens: Tensor, lengths: Tensor, longest: int) -> Tensor:
        """Logits [B, V] of the rows in slots 0 to B. A failed call changes nothing: rows keep their slots and tokens,
        and a token fed twice is written to the same place."""
        rows = tokens.shape[0]
        if rows <= self._most:
            try:
                return self._runner.decode(tokens, lengths, longest)
            except ROW_ERRORS as error:
                self._remember(error, rows)
        self._recover()
        step = _Step(tokens, lengths, longest, order=list(range(rows)))
        parts = self._decode_halves(step, list(range(rows)))
        self._bring_to_front(step, list(range(rows)))
        return torch.cat(parts)

    def _decode_halves(self, step: _Step, rows: list[int]) -> list[Tensor]:
        """Logits of `rows`, in their order."""
        if len(rows) == 1:
            return [self._nothing]
        half = len(rows) // 2
        parts: list[Tensor] = []
        for part in (rows[:half], rows[half:]):
            if len(part) <= self._most:
                self._bring_to_front(step, part)
                try:
                    parts.append(self._runner.decode(step.tokens[part], step.lengths[part], step.longest))
                    continue
                except ROW_ERRORS as error:
                    self._remember(error, len(part))
            parts += self._decode_halves(step, part)
        return parts

    def _bring_to_front(self, step: _Step, rows: list[int]) -> None:
        """Swap rows so that `rows` sit in slots 0, 1, …"""
        order = step.order
        for slot, row in enumerate(rows):
            old = order.index(row)
            if old != slot:
                for source, target in ((slot, self._spare), (old, slot), (self._spare, old)):
                    self._runner.move(source, target, step.longest + 1)
                order[slot], order[old] = order[old], order[slot]

    def _remember(self, error: Exception, rows: int) -> None:
        if rows == 1:
            log.error("a row failed in decode", extra={"error": repr(error)})
        if _make_room(error):
            self._most, self._calm = max(1, min(self._most, rows // 2)), 0
            log.warning("decode ran out of memory", extra={"rows": rows, "next": self._most})

    def _recover(self) -> None:
        """After a while of steps in parts, larger parts are tried."""
        self._calm += 1
        if self._calm >= _RECOVERY:
            self._most, self._calm = min(self._spare, 2 * self._most), 0


def _make_room(error: Exception) -> bool:
    """Whether it was memory that ran out; what the allocator holds in reserve is given back."""
    if isinstance(error, torch.OutOfMemoryError) and torch.cuda.is_available():
        torch.cuda.empty_cache()
    return isinstance(error, (torch.OutOfMemoryError, MemoryError))


def _join(first: Prefilled, second: Prefilled) -> Prefilled:
    return Prefilled(
        logits=torch.cat((first.logits, second.logits)),
        scores=[*first.scores, *second.scores],
        tokens=first.tokens + second.tokens,
        padding=first.padding + second.padding,
    )
