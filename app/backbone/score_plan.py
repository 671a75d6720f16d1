"""Where label scores come from in a batch's logits, and how they add up.

Label words hang as branches behind a row's trunk, all but their last token, so one prefill scores every label, words of
several tokens included. `ScorePlan` says which logits are needed and how they add up to words and labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from app.backbone.transfer import to_device
from app.backbone.verbalizer import Verbalizer


def word_branches(verbalizer: Verbalizer) -> list[tuple[int, ...]]:
    """The branches that scoring needs: every word's tokens but its last, where there are any."""
    return [word[:-1] for _, word in verbalizer.flat if len(word) > 1]


@dataclass(frozen=True)
class ScorePlan:
    """Where to read and how to add up, for a batch of rows with verbalizers.

    reads   [N] int64   flat indices of the tokens whose logits are needed, each once
    pick    [M] int64   index into `reads` of each scored token
    tokens  [M] int64   the scored token
    words   [M] int64   the word it belongs to, counted over the batch
    labels  [W] int64   the label each word belongs to, counted over the batch
    trunks  [B] int64   index into `reads` of each row's last trunk token
    sizes               labels of each row that has a verbalizer
    """

    reads: Tensor
    pick: Tensor
    tokens: Tensor
    words: Tensor
    labels: Tensor
    trunks: Tensor
    sizes: tuple[int, ...]

    def label_scores(self, logits: Tensor) -> list[Tensor]:
        """Log-scores per row, [K] float32 each, from logits [N, V] at `reads`."""
        if not self.sizes:
            return []
        logits = logits.float()
        return self.add_up(logits[self.pick, self.tokens] - logits.logsumexp(-1)[self.pick])

    def add_up(self, log_probs: Tensor) -> list[Tensor]:
        """Log-scores per row, [K] float32 each, from the scored tokens' log-probabilities [M] float32."""
        if not self.sizes:
            return []
        words = torch.zeros(self.labels.shape[0], device=log_probs.device).index_add(0, self.words, log_probs)  # [W]
        return list(_log_sum_exp(words, self.labels, sum(self.sizes)).split(list(self.sizes)))


def plan_scores(ends: Sequence[int], verbalizers: Sequence[Verbalizer | None], device: torch.device) -> ScorePlan:
    """The plan for rows laid out with `word_branches` of their verbalizers right behind their trunks, which end at the
    flat indices `ends`; rows without a verbalizer are read there."""
    reads: list[int] = []
    pick: list[int] = []
    tokens: list[int] = []
    words: list[int] = []
    labels: list[int] = []
    trunks: list[int] = []
    label_base = 0
    for i, verbalizer in enumerate(verbalizers):
        trunk_read = len(reads)
        trunks.append(trunk_read)
        reads.append(ends[i])
        if verbalizer is None:
            continue
        column = ends[i] + 1
        for label, word in verbalizer.flat:
            places = [trunk_read, *range(len(reads), len(reads) + len(word) - 1)]
            reads.extend(range(column, column + len(word) - 1))
            column += len(word) - 1
            pick += places
            tokens += word
            words += [len(labels)] * len(word)
            labels.append(label_base + label)
        label_base += len(verbalizer.labels)

    sizes = tuple(len(v.labels) for v in verbalizers if v is not None)
    names = ("reads", "pick", "tokens", "words", "labels", "trunks")
    numbers = (np.asarray(values, np.int64) for values in (reads, pick, tokens, words, labels, trunks))
    return ScorePlan(**dict(zip(names, to_device(device, *numbers), strict=True)), sizes=sizes)


def _log_sum_exp(values: Tensor, groups: Tensor, count: int) -> Tensor:
    """Log-sum-exp of `values` [W] within `groups` [W], as [count]."""
    peak = torch.full((count,), -torch.inf, device=values.device).scatter_reduce(0, groups, values.detach(), "amax")
    total = torch.zeros(count, device=values.device).index_add(0, groups, (values - peak[groups]).exp())
    return total.log() + peak
