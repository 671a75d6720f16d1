"""What each running row needs for its next token, as tensors: the decode loop reads and writes rows by slot."""

from __future__ import annotations

import torch
from torch import Tensor

from app.engine.sampling import sample
from app.engine.types import Sampling


class SlotState:
    """Per slot: the newest token, tokens in the cache, tokens still allowed, and how to sample."""

    def __init__(self, slots: int, device: torch.device) -> None:
        def column(dtype: torch.dtype) -> Tensor:
            return torch.zeros(slots, dtype=dtype, device=device)

        self.token, self.length, self.left = column(torch.int64), column(torch.int64), column(torch.int64)
        self.temperature, self.top_p = column(torch.float32), column(torch.float32)
        self.top_k, self.seed, self.step = column(torch.int64), column(torch.int64), column(torch.int64)
        self._columns = (
            *(self.token, self.length, self.left, self.temperature, self.top_p, self.top_k, self.seed, self.step),
        )

    def open(self, start: int, lengths: list[int], sampling: list[Sampling]) -> None:
        """Fill the slots from `start` on for rows that were just prefilled."""
        rows = slice(start, start + len(sampling))

        def fill(column: Tensor, values: list[int] | list[float]) -> None:
            column[rows] = torch.tensor(values, dtype=column.dtype)

        fill(self.length, lengths)
        fill(self.left, [s.max_tokens for s in sampling])
        fill(self.temperature, [s.temperature for s in sampling])
        fill(self.top_p, [s.top_p for s in sampling])
        fill(self.top_k, [s.top_k for s in sampling])
        fill(self.seed, [s.seed for s in sampling])
        self.step[rows] = 0

    def advance(self, start: int, logits: Tensor, ends: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Sample the next token of the rows from `start` on, logits [B, V].

        Returns token [B], `ended` [B] (an end token) and `full` [B] (no token left); the state moves on by one.
        """
        rows = slice(start, start + logits.shape[0])
        token = sample(
            logits, self.temperature[rows], self.top_p[rows], self.top_k[rows], self.seed[rows], self.step[rows]
        )
        self.token[rows] = token
        self.step[rows] += 1
        self.left[rows] -= 1
        return token, torch.isin(token, ends), self.left[rows] == 0

    def move(self, source: int, target: int) -> None:
        for column in self._columns:
            column[target] = column[source]
