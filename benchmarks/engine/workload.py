"""The work that every peer is given, as token ids and prompt vectors: the same seeds give the same requests anywhere.

A task has P prompt vectors and, where `literals` says so, a template of its own: a few fixed words before and behind
the text. A request is one task and a fresh text; no text ever comes twice, in no round. Knows no peer and no Chorus.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

Kind = Literal["generate", "labels"]
_SPREAD = 0.02  # of the models' word embeddings


@dataclass(frozen=True)
class Workload:
    """`prompt`, `text` and `literals` are (fewest, most), inclusive: prompt vectors, text tokens, words of the template
    on either side of the text. Kind `labels` scores that many words; kind `generate` makes `new_tokens` tokens,
    greedily, whatever they are. `members` tasks answer each text (fan-out, ensembles): with `coupled` they write one
    answer together. `suffix` puts prompts behind the text."""

    kind: Kind = "generate"
    tasks: int = 8
    prompt: tuple[int, int] = (100, 100)
    text: tuple[int, int] = (24, 48)
    literals: tuple[int, int] = (0, 0)
    new_tokens: int = 16
    labels: int = 4
    members: int = 1
    coupled: bool = False
    suffix: bool = False
    seed: int = 1

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> Workload:
        ranges = {key: tuple(body[key]) for key in ("prompt", "text", "literals")}
        return cls(**{**body, **ranges})


@dataclass(frozen=True)
class Task:
    """`vectors` [P, H] float32; `before` and `behind` are the template's own ids around the text."""

    vectors: Tensor
    before: tuple[int, ...]
    behind: tuple[int, ...]

    @property
    def size(self) -> int:
        return self.vectors.shape[0]

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.vectors.numpy().tobytes()).hexdigest()


@dataclass(frozen=True)
class Ask:
    """One request: which tasks, and every id that is no prompt vector, the template's words included."""

    tasks: tuple[int, ...]
    ids: tuple[int, ...]

    @property
    def task(self) -> int:
        return self.tasks[0]


def make_tasks(work: Workload, *, hidden: int, vocabulary: int) -> list[Task]:
    """The tasks of a workload; equal workloads differ in nothing."""
    dice = np.random.default_rng([work.seed, 0])
    (low, high), (few, most) = work.prompt, work.literals
    # Spread over the whole range, so that few tasks are as varied as many; then shuffled.
    sizes = dice.permutation(np.linspace(low, high, work.tasks).round().astype(int)).tolist()
    tasks = []
    for size in sizes:
        vectors = dice.standard_normal((size, hidden), dtype=np.float32) * _SPREAD
        before, behind = (tuple(_ids(dice, dice.integers(few, most + 1), vocabulary)) for _ in range(2))
        tasks.append(Task(torch.from_numpy(vectors), before, behind))
    return tasks


def make_asks(work: Workload, tasks: Sequence[Task], *, vocabulary: int, turn: int, count: int) -> list[Ask]:
    """The requests of round `turn`, tasks at random in arrival order. Rounds share no text, and a shorter round is the
    beginning of a longer one."""
    dice = np.random.default_rng([work.seed, 1, turn])
    return [_ask(work, tasks, int(dice.integers(0, len(tasks))), dice, vocabulary) for _ in range(count)]


def make_even_asks(work: Workload, tasks: Sequence[Task], *, vocabulary: int, turn: int, count: int) -> list[Ask]:
    """As many requests of each task, `count` together, in random order: what fills batches that hold one task each.
    Shares no text with other rounds. Raises ValueError where `count` cannot be shared out."""
    if count % len(tasks):
        raise ValueError(f"{count} requests cannot be shared out evenly among {len(tasks)} tasks")
    dice = np.random.default_rng([work.seed, 6, turn])
    order = dice.permutation(np.repeat(np.arange(len(tasks)), count // len(tasks))).tolist()
    return [_ask(work, tasks, task, dice, vocabulary) for task in order]


def every_task(work: Workload, tasks: Sequence[Task], *, vocabulary: int, turn: int, at_least: int) -> list[Ask]:
    """One request of each task in order, again and again until there are enough: to warm up with. Shares no text with
    any round of `make_asks`."""
    dice = np.random.default_rng([work.seed, 2, turn])
    count = len(tasks) * -(-at_least // len(tasks))
    return [_ask(work, tasks, i % len(tasks), dice, vocabulary) for i in range(count)]


def _ask(work: Workload, tasks: Sequence[Task], task: int, dice: np.random.Generator, vocabulary: int) -> Ask:
    low, high = work.text
    text = _ids(dice, dice.integers(low, high + 1), vocabulary)
    together = tuple((task + i) % len(tasks) for i in range(work.members))
    return Ask(together, (*tasks[task].before, *text, *tasks[task].behind))


def label_ids(work: Workload, vocabulary: int) -> list[int]:
    """The labels' words, one token each."""
    return [vocabulary // 2 + i for i in range(work.labels)]


def row_embeddings(work: Workload, task: Task, ask: Ask, embedding: Tensor) -> Tensor:
    """What peers that take embeddings are given: [P + T, H] in the dtype of `embedding` [V, H]."""
    parts = (task.vectors.to(embedding.dtype), embedding[torch.tensor(ask.ids)])
    return torch.cat(parts[::-1] if work.suffix else parts)


def row_ids(work: Workload, task: Task, ask: Ask) -> tuple[int, ...]:
    """The same as ids: `-1 - j` stands for vector j of the prompt."""
    vectors = tuple(-1 - j for j in range(task.size))
    return (*ask.ids, *vectors) if work.suffix else (*vectors, *ask.ids)


def fingerprint(tasks: Sequence[Task], asks: Sequence[Ask]) -> str:
    """A short digest of the work, to see that two processes were given the same."""
    digest = hashlib.sha256()
    for task in tasks:
        digest.update(task.digest.encode())
    digest.update(repr([(ask.tasks, ask.ids) for ask in asks]).encode())
    return digest.hexdigest()[:12]


def _ids(dice: np.random.Generator, count: int | np.integer[Any], vocabulary: int) -> list[int]:
    """Ids from the lower half of the vocabulary: label words stand in the upper one."""
    return [int(i) for i in dice.integers(0, vocabulary // 2, int(count))]
