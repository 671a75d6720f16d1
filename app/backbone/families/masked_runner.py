"""The runner of a masked model: rows are scored in the run that brings them in; nothing is kept between runs."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from app.backbone.families.masked_forward import MaskedForward
from app.backbone.families.masked_scoring import NO_TEXT, run
from app.backbone.kv import PrefixKV
from app.backbone.runner import Prefilled, PrefillItem


class MaskedRunner:
    """Rows without a verbalizer get the logits at their mask: one token, and no second one."""

    def __init__(self, forward: MaskedForward, *, slots: int, places: int) -> None:
        self.slots, self.places = slots, places
        self.name = "reference" if forward.alone else "fast"
        self._forward = forward

    def prefill(self, start: int, items: Sequence[PrefillItem]) -> Prefilled:
        found = run(
            self._forward,
            [item.row for item in items],
            [item.prompt for item in items],
            [item.verbalizer for item in items],
        )
        return Prefilled(found.logits, found.scores, found.tokens, found.padding)

    def decode(self, tokens: Tensor, lengths: Tensor, longest: int) -> Tensor:
        raise RuntimeError(NO_TEXT)

    def read_prefix(self, slot: int, length: int) -> PrefixKV | None:
        return None

    def move(self, source: int, target: int, length: int) -> None:
        """A row leaves nothing behind."""

    def wipe(self, slot: int) -> None:
        """A row leaves nothing behind."""
