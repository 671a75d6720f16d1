"""The runner of an encoder-decoder: a prefill is the encoder and the decoder's first step, a decode step one token.

Rows decode at different lengths. Where only distances count (T5) they take a step together, each ending at the same
place; where a model counts positions once for the whole batch (BART), rows of equal length go together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from app.backbone.families.seq2seq_forward import Decoded, Seq2SeqForward, Target, parts_of_prompt
from app.backbone.families.seq2seq_memory import Seq2SeqMemory, StepRows, step_rows
from app.backbone.families.seq2seq_scoring import plan_targets
from app.backbone.kv import KVShape, PrefixKV
from app.backbone.runner import Prefilled, PrefillItem


@dataclass(frozen=True)
class _Held:
    """A row in its slot: places of the encoder's part, the decoder's own at its start, and what the caller counted as
    the row's length then."""

    cross: int = 0
    own: int = 0
    total: int = 0


class Seq2SeqRunner:
    """Rows of any prompts, lengths and templates."""

    name = "fast"

    def __init__(self, forward: Seq2SeqForward, *, slots: int, places: int) -> None:
        """`places` counts a row's encoder tokens and its decoder's, virtual ones included, the start token not."""
        self.slots, self.places = slots, places
        self._forward = forward
        self._memory = Seq2SeqMemory(layers=forward.layers, slots=slots, places=places + len(forward.start))
        self._held = [_Held()] * slots

    @property
    def kv_shape(self) -> KVShape | None:
        """What a token leaves in the decoder's layers; known after the first prefill."""
        return self._memory.shape

    def prefill(self, start: int, items: Sequence[PrefillItem]) -> Prefilled:
        forward = self._forward
        prompts = [parts_of_prompt(item.prompt if item.decoder is None else item.decoder) for item in items]
        rows = [item.row for item in items]
        sources = forward.encode(rows, prompts)
        plan = plan_targets([item.verbalizer for item in items], forward.device)
        hidden, passes = forward.hidden(sources, plan.targets, prompts)
        logits = forward.logits(hidden)  # [N, V]
        for done in passes:
            self._keep(start, items, plan.targets, done, sources.lengths)
        scored = iter(plan.plan.label_scores(logits))
        return Prefilled(
            logits=logits[plan.plan.trunks],
            scores=[next(scored) if item.verbalizer else None for item in items],
            tokens=sum(len(row.ids) for row in rows) + sum(1 + len(target.tokens) for target in plan.targets),
            padding=sources.padding,
        )

    def decode(self, tokens: Tensor, lengths: Tensor, longest: int) -> Tensor:
        held = self._held[: tokens.shape[0]]
        own = [of.own + length - of.total for of, length in zip(held, lengths.tolist(), strict=True)]
        groups: dict[int, list[int]] = {}
        for slot, count in enumerate(own):
            groups.setdefault(0 if self._forward.aligned else count, []).append(slot)
        parts = [
            self._step(tokens, slots, [held[s].cross for s in slots], [own[s] for s in slots])
            for slots in groups.values()
        ]
        if len(parts) == 1:
            return parts[0]
        order = torch.tensor([slot for slots in groups.values() for slot in slots], device=tokens.device)
        return torch.cat(parts)[order.argsort()]

    def read_prefix(self, slot: int, length: int) -> PrefixKV | None:
        """Nothing: what comes first in an encoder sees all that follows."""
        return None

    def move(self, source: int, target: int, length: int) -> None:
        held = self._held[source]
        used = held.cross + held.own + max(0, length - held.total)
        self._memory.move(source, target, min(used, self._memory.places))
        self._held[target] = held

    def wipe(self, slot: int) -> None:
        self._memory.wipe(slot)

    def _step(self, tokens: Tensor, slots: list[int], cross: list[int], own: list[int]) -> Tensor:
        """One token of the rows in `slots`: logits [B, V]."""
        rows = step_rows(slots, cross, own, tokens.device)
        embeds = self._forward.words(tokens[rows.slots][:, None])  # [B, 1, H]
        uneven = min(own) < max(own)
        states = self._forward.decoder(
            inputs_embeds=embeds,
            attention_mask=rows.own.long() if uneven else None,
            encoder_hidden_states=_shape_of_sources(rows, embeds.dtype),
            encoder_attention_mask=self._forward.cross_mask(
                torch.arange(rows.width, device=tokens.device) < rows.cross[:, None]
            ),
            past_key_values=self._memory.step_cache(rows),
            use_cache=True,
        ).last_hidden_state
        return self._forward.logits(states[:, 0])

    def _keep(
        self, start: int, items: Sequence[PrefillItem], targets: Sequence[Target], done: Decoded, sources: Sequence[int]
    ) -> None:
        """Put the rows that go on into their slots; those whose labels were scored end here."""
        going = [(i, targets[place].source) for i, place in enumerate(done.rows)]
        going = [(i, source) for i, source in going if items[source].verbalizer is None]
        if not going:
            return
        own = done.keys_and_values(cross=False)  # [2, L, W, G, T, D]
        cross = done.keys_and_values(cross=True)
        for i, source in going:
            item = items[source]
            prompt = parts_of_prompt(item.prompt if item.decoder is None else item.decoder)
            read = sources[source] + (0 if prompt.cross is None else prompt.cross.length)
            begun = self._forward.head_length(prompt) + (0 if prompt.prefix is None else prompt.prefix.length)
            slot = start + source
            self._memory.write(slot, 0, *cross[:, :, i, :, :read])
            self._memory.write(slot, read, *own[:, :, i, :, :begun])
            self._held[slot] = _Held(read, begun, item.row.total)


def _shape_of_sources(rows: StepRows, dtype: torch.dtype) -> Tensor:
    """What stands for the encoder's states [B, S, 1] where only their shape is looked at."""
    return torch.zeros(1, dtype=dtype, device=rows.slots.device).expand(len(rows.slots), rows.width, 1)
