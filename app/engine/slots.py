"""What each running row needs for its next token, as tensors: the decode loop reads and writes rows by slot."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from app.backbone.greedy import greedy_or_failed
from app.engine.groups import Sequence as Row
from app.engine.sampling import draw, draw_uncut, mix
from app.engine.types import View


@dataclass(frozen=True)
class Lineup:
    """Which rows of a batch need what, made when rows come or go, so that the steps in between look at no row.

    `cut`, `uncut`: rows that sample with and without top_k or top_p (all others are greedy). `coupled` rows choose a
    token with the rest of their group: `groups` numbers the group of each, `firsts` is its first row, `sizes` its rows.
    """

    longest: int
    prompts: int
    cut: Tensor | None
    uncut: Tensor | None
    coupled: Tensor | None
    groups: Tensor
    firsts: Tensor
    sizes: Tensor

    @classmethod
    def of(cls, rows: Sequence[Row], device: torch.device) -> Lineup:
        """The lineup of rows that sit side by side, numbered from 0."""

        def tensor(values: Iterable[int]) -> Tensor:
            return torch.tensor(list(values), dtype=torch.int64, device=device)

        cut: list[int] = []
        uncut: list[int] = []
        coupled: list[int] = []
        firsts: dict[int, int] = {}  # first row of each coupled group, by the group's identity
        numbers: dict[int, int] = {}
        sizes: list[int] = []
        for i, row in enumerate(rows):
            sampling = row.row.sampling
            if sampling is not None and sampling.temperature > 0:
                (cut if sampling.top_k > 0 or sampling.top_p < 1 else uncut).append(i)
            if row.group.coupled:
                coupled.append(i)
                key = id(row.group)
                firsts.setdefault(key, i)
                numbers.setdefault(key, len(numbers))
                sizes.extend([0] * (len(numbers) - len(sizes)))
                sizes[numbers[key]] += 1
        return cls(
            longest=max(row.length for row in rows),
            prompts=len({row.row.digest for row in rows}),
            cut=tensor(cut) if cut else None,
            uncut=tensor(uncut) if uncut else None,
            coupled=tensor(coupled) if coupled else None,
            groups=tensor(numbers[id(rows[i].group)] for i in coupled),
            firsts=tensor(firsts[id(rows[i].group)] for i in coupled),
            sizes=tensor(sizes),
        )


class Chosen(NamedTuple):
    """One token for each row, -1 where the row's logits were not finite; `views` of coupled rows by their number."""

    tokens: list[int]
    views: dict[int, View]


class SlotState:
    """Per slot: the newest token, tokens in the cache, and how to sample."""

    def __init__(self, slots: int, device: torch.device) -> None:
        self._device = device
        self._whole = torch.zeros(5, slots, dtype=torch.int64, device=device)
        self._real = torch.zeros(2, slots, dtype=torch.float32, device=device)
        self.token, self.length, self.step, self.top_k, self.seed = self._whole
        self.temperature, self.top_p = self._real

    def open(self, start: int, rows: Sequence[Row]) -> None:
        """Fill the slots from `start` on for rows that were just prefilled."""
        asked = [row.row.sampling for row in rows if row.row.sampling is not None]
        whole = [[0] * len(rows), [row.total for row in rows], [0] * len(rows)]
        whole += [[s.top_k for s in asked], [s.seed for s in asked]]
        self._whole[:, start : start + len(rows)] = torch.tensor(whole, dtype=torch.int64).to(self._device)
        real = [[s.temperature for s in asked], [s.top_p for s in asked]]
        self._real[:, start : start + len(rows)] = torch.tensor(real, dtype=torch.float32).to(self._device)

    def advance(self, start: int, logits: Tensor, lineup: Lineup) -> Chosen:
        """Choose the next token of the rows from `start` on, logits [B, V]; the state moves on by one.

        One transfer from the device, a second one where there are coupled rows.
        """
        rows = slice(start, start + logits.shape[0])
        best, own = greedy_or_failed(logits), logits
        finite = best >= 0
        if lineup.coupled is not None:
            mixed = mix(
                logits[lineup.coupled].float(), self.temperature[rows][lineup.coupled], lineup.groups, lineup.sizes
            )
            logits = logits.float().index_copy(0, lineup.coupled, mixed)
            best = best.index_copy(0, lineup.coupled, mixed.max(-1).indices)
        token = self._sample(logits, best.clamp(min=0), rows, lineup)
        self.token[rows] = token
        self.step[rows] += 1
        return Chosen(torch.where(finite, token, -1).tolist(), _views(own, token, lineup))

    def move(self, source: int, target: int) -> None:
        self._whole[:, target] = self._whole[:, source]
        self._real[:, target] = self._real[:, source]

    def _sample(self, logits: Tensor, token: Tensor, rows: slice, lineup: Lineup) -> Tensor:
        """The next token of each row; `token` holds the most likely ones, which greedy rows take."""
        temperature, top_p, top_k = self.temperature[rows], self.top_p[rows], self.top_k[rows]
        seed, step = self.seed[rows], self.step[rows]
        if lineup.uncut is not None:
            i = lineup.uncut
            token[i] = draw_uncut(logits[i].float(), temperature[i], seed[i], step[i])
        if lineup.cut is not None:
            i = lineup.cut
            token[i] = draw(logits[i].float(), temperature[i], top_p[i], top_k[i], seed[i], step[i])
        if lineup.coupled is not None:
            token[lineup.coupled] = token[lineup.firsts]
        return token


def _views(logits: Tensor, token: Tensor, lineup: Lineup) -> dict[int, View]:
    if lineup.coupled is None:
        return {}
    own, chosen = logits[lineup.coupled].float(), token[lineup.coupled]
    logprobs = own.log_softmax(-1).gather(1, chosen[:, None])[:, 0]
    agrees = own.argmax(-1) == chosen
    both = torch.stack((lineup.coupled.double(), logprobs.double(), agrees.double())).tolist()
    return {int(i): View(logprob, agree > 0) for i, logprob, agree in zip(*both, strict=True)}
