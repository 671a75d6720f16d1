"""Which text each row of each batch is from: a schedule of shares, kept to exactly, and a place in every source.

No chance is involved: a source's credit grows by its share for each row, and the largest credit is served. So the order
is a function of the recipe, and a run goes on from the few numbers of `state`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pretraining.documents import ANSWER, TASK
from pretraining.recipe import Phase
from pretraining.shards import PackedReader
from pretraining.tokenizer import BOS


class Batch(NamedTuple):
    """`ids` `[B, T + 1]` int64; `weights` `[B, T]` float32 of the loss on `ids[:, 1:]`; `answers` `[B, T]` bool, which
    of those are answers; `sources`, the name of each row's source."""

    ids: NDArray[np.int64]
    weights: NDArray[np.float32]
    answers: NDArray[np.bool_]
    sources: tuple[str, ...]


def phase_at(phases: Sequence[Phase], progress: float) -> Phase:
    """The phase at a share of all steps, from 0 up to but not including 1."""
    return next(phase for phase in phases if progress < phase.until)


class Mixture:
    """Makes batches out of the packed sources."""

    def __init__(self, readers: Mapping[str, PackedReader]) -> None:
        self.readers = dict(readers)
        self._credit = dict.fromkeys(self.readers, 0.0)
        self._at = dict.fromkeys(self.readers, 0)

    def batch(self, phase: Phase) -> Batch:
        """The next batch of a phase, and forward in the sources by what was read."""
        ids = np.empty((phase.rows, phase.length + 1), np.int64)
        kinds = np.empty((phase.rows, phase.length + 1), np.uint8)
        inside = np.ones((phase.rows, phase.length + 1), np.bool_)
        sources = tuple(self._next_source(phase.mixture) for _ in range(phase.rows))
        for row, name in enumerate(sources):
            ids[row], kinds[row], inside[row] = self._read(name, phase.length)
        weights = loss_weights(kinds, answer=phase.answer_weight, task=phase.task_weight) * inside
        # A document's first token follows from nothing that the model may see: the one before is of another document.
        weights[ids == BOS] = 0.0
        answers = (kinds == ANSWER) & inside
        return Batch(ids, weights[:, 1:].astype(np.float32), answers[:, 1:], sources)

    def state(self) -> dict[str, Any]:
        """For a checkpoint: JSON that `restore` takes."""
        return {"credit": dict(self._credit), "at": dict(self._at)}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._credit, self._at = dict(state["credit"]), dict(state["at"])

    def _next_source(self, shares: Mapping[str, float]) -> str:
        for name, share in shares.items():
            self._credit[name] += share
        chosen = max(shares, key=lambda name: self._credit[name])
        self._credit[chosen] -= 1.0
        return chosen

    def _read(self, name: str, length: int) -> tuple[NDArray[np.uint16], NDArray[np.uint8], NDArray[np.bool_]]:
        """One window, its kinds, and what of it counts. Exercises: whole documents alone; the next window begins with
        the document that this one cut off."""
        reader = self.readers[name]
        at = self._at[name]
        ids, kinds = reader.window(at, length + 1)
        inside = np.ones(length + 1, np.bool_)
        step = length
        if reader.packed.aligned:
            ahead, _ = reader.window(at + length + 1, 1)
            begins = np.flatnonzero(ids[1:] == BOS) + 1
            if ahead[0] == BOS:
                step = length + 1
            elif len(begins):  # else one document is longer than the window: go on in it
                step = int(begins[-1])
                inside[step:] = False
        self._at[name] = (at + step) % len(reader)
        return ids, kinds, inside


def loss_weights(kinds: NDArray[np.uint8], *, answer: float, task: float) -> NDArray[np.float32]:
    """Weight of each token by its kind: running text 1, the text of tasks `task`, answers `answer`."""
    table = np.ones(3, np.float32)
    table[TASK], table[ANSWER] = task, answer
    weights: NDArray[np.float32] = table[kinds]
    return weights
