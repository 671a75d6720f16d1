"""What all peers have in common: their model's folder, the workload, and a clock around answering it.

A peer derives from `BasePeer` and says how to load, to warm up, to lay out inputs and to answer them. Inputs are laid
out before the clock starts: what is compared is engines, not clients.
"""

from __future__ import annotations

import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import safe_open
from torch import Tensor

from benchmarks.engine.models import SHAPES
from benchmarks.engine.workload import (
    Ask,
    Task,
    Workload,
    every_task,
    fingerprint,
    label_ids,
    make_asks,
    make_even_asks,
    make_tasks,
)


class BasePeer(ABC):
    """One loaded peer. `options`: `model` (a name of models.SHAPES), `folder` of its files, `threads`."""

    kinds: ClassVar[frozenset[str]] = frozenset({"generate", "labels"})

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self.shape = SHAPES[options["model"]]
        self.folder = Path(options["folder"])
        self._slots: dict[str, tuple[Workload, list[Task]]] = {}
        self.batches: list[int] = []  # rows of each batch that `answer` ran since the last `measure` began
        torch.set_num_threads(options["threads"])

    def prepare(self, work: dict[str, Any], slot: str = "") -> dict[str, Any]:
        """Take a workload up, under a name; whatever stays warm in use is warm when this returns. Raises ValueError for
        a kind of work that this peer cannot do: no section should have asked."""
        workload = Workload.from_json(work)
        if workload.kind not in self.kinds:
            raise ValueError(f"{type(self).__name__} does not do {workload.kind!r}; it does {sorted(self.kinds)}")
        tasks = make_tasks(workload, hidden=self.shape.hidden, vocabulary=self.shape.vocabulary)
        self._slots[slot] = workload, tasks
        self._use(slot)
        self.warm_up()
        return {}

    def measure(self, turn: int, count: int, how: str = "", slot: str = "", even: bool = False) -> dict[str, Any]:
        """Answer `count` requests of a round, all there at once, or with `how` = `each` one after another; `even`: as
        many of each task. Seconds from the first to the last of them, and of peers that are given batches the mean of
        their rows."""
        self._use(slot)
        asks = self.asks(turn, count, even=even)
        self.batches = []
        parts = [self.inputs([ask], how) for ask in asks] if how == "each" else [self.inputs(asks, how)]
        began = time.perf_counter()
        answers = [answer for part in parts for answer in self.answer(part, how)]
        seconds = time.perf_counter() - began
        rows = statistics.mean(self.batches) if self.batches else None
        return {"seconds": seconds, "answers": answers, "work": fingerprint(self.tasks, asks), "rows_a_batch": rows}

    def _use(self, slot: str) -> None:
        self.work, self.tasks = self._slots[slot]
        self.labels = label_ids(self.work, self.shape.vocabulary)

    def asks(self, turn: int, count: int, *, even: bool = False) -> list[Ask]:
        make = make_even_asks if even else make_asks
        return make(self.work, self.tasks, vocabulary=self.shape.vocabulary, turn=turn, count=count)

    @property
    def new_tokens(self) -> int:
        return self.work.new_tokens if self.work.kind == "generate" else 1

    # what a peer says of itself

    def warm_up(self) -> None:
        """Answer every task's requests twice, in rounds that nobody measures: first few, then a full batch."""
        many = 64 if self.work.text[1] < 256 else 8
        for turn, at_least in enumerate((1, many)):
            self.answer(self.inputs(self.every_task(turn, at_least), ""), "")

    def every_task(self, turn: int, at_least: int) -> list[Ask]:
        return every_task(self.work, self.tasks, vocabulary=self.shape.vocabulary, turn=turn, at_least=at_least)

    def inputs(self, asks: Sequence[Ask], how: str) -> Any:
        return asks

    @abstractmethod
    def answer(self, inputs: Any, how: str) -> list[Any]:
        """One answer for each request, in order: the tokens, or the index of the best label; a list of these where
        several tasks answer one text."""


def word_embeddings(folder: Path) -> Tensor:
    """[V, H] of a saved model, read from its file."""
    with safe_open(folder / "model.safetensors", framework="pt") as tensors:
        weight: Tensor = tensors.get_tensor("model.embed_tokens.weight")
    return weight


def read_last_rows_well(model: Any) -> None:
    """Lay what enters a transformers model's output layer out in sequence. It is a slice of the last places, and torch
    (2.13) multiplies such a slice in bfloat16 only after it has copied the weight once for each row: 26 s for 32 rows
    of `0.5b` and nine tokens each, 5 s otherwise; a single row pays for one copy. A peer is measured at its best."""
    model.get_output_embeddings().register_forward_pre_hook(lambda _, given: (in_sequence(given[0]), *given[1:]))


def in_sequence(x: Tensor) -> Tensor:
    """x with the strides of a new tensor, copied where it has others. `contiguous` does not see to that: it takes no
    account of a dimension of size 1, so that the last place of one row, [1, 1, H], keeps the strides of all places."""
    strides = torch.empty(x.shape, device="meta").stride()
    if x.stride() != strides:
        x = x.clone(memory_format=torch.contiguous_format)
    assert x.stride() == strides, (x.stride(), strides)
    return x
