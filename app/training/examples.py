"""Checked examples → encoded examples, and the order in which training meets them.

The order is a function of the seed and the epoch alone, so that a resumed run needs only its place in it.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from app.backbone import BackboneTokenizer, Bos, Row, Template, Verbalizer, encode_answer, encode_row
from app.training.data import Example

BUCKET_BATCHES = 16
"""Rows are sorted by length within this many batches: little padding, and still a different mix each epoch."""


@dataclass(frozen=True)
class Encoded:
    """One example as the objective reads it: `label` is an index, `answer` holds the end token."""

    row: Row
    label: int | None
    answer: tuple[int, ...]
    example: Example

    @property
    def length(self) -> int:
        return self.row.total + len(self.answer)


@dataclass(frozen=True)
class Encoder:
    """How this job's examples become rows. `max_tokens`: longest row with its answer; longer inputs are cut."""

    tokenizer: BackboneTokenizer
    template: Template
    bos: Bos
    verbalizer: Verbalizer | None
    max_tokens: int

    def encode(self, example: Example) -> Encoded:
        if self.verbalizer is not None:
            assert example.label is not None
            row = self._row(example, self.verbalizer.longest)
            return Encoded(row, self.verbalizer.labels.index(example.label), (), example)
        assert example.output is not None
        answer = encode_answer(self.tokenizer, self.template, example.output)
        room = self.max_tokens // 2
        if len(answer) > room:  # an answer is never cut in the middle of what it says unless it alone fills the context
            answer = answer[:room]
        return Encoded(self._row(example, len(answer)), None, answer, example)

    def encode_inputs(self, inputs: Sequence[Mapping[str, str]]) -> list[Encoded]:
        """Inputs without an answer, as they are served. One that comes out without any token is left out."""
        examples = [Example(row=0, fields=fields) for fields in inputs]
        rows = [encode_row(self.tokenizer, self.template, self.bos, example.fields) for example in examples]
        return [Encoded(row, None, (), example) for row, example in zip(rows, examples, strict=True) if row.total]

    def encode_next(self, example: Example) -> Encoded:
        """An input alone, cut so that one more token fits behind it."""
        return Encoded(self._row(example, 1), None, (), example)

    def is_cut(self, encoded: Encoded) -> bool:
        """Whether the example's input did not fit."""
        whole = encode_row(self.tokenizer, self.template, self.bos, encoded.example.fields)
        return whole.total > encoded.row.total

    def _row(self, example: Example, reserve: int) -> Row:
        room = self.max_tokens - reserve
        return encode_row(self.tokenizer, self.template, self.bos, example.fields, max_tokens=room)


def frequent_tokens(encoded: Sequence[Encoded], reserved: frozenset[int]) -> list[int]:
    """Token ids of the rows, most frequent first, equal counts by id."""
    counts: Counter[int] = Counter()
    for one in encoded:
        counts.update(index for index in one.row.ids if index >= 0 and index not in reserved)
    return [index for index, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]


def split_rows(examples: Sequence[Example], share: float, *, seed: int) -> tuple[list[Example], list[Example]]:
    """(train, dev): a share of each label's rows is held back, at least one row where a label has two or more.

    All examples of one row (a conversation) go the same way. With labels that have one row each nothing is held back.
    """
    by_label: dict[str | None, list[int]] = {}
    for example in examples:
        rows = by_label.setdefault(example.label, [])
        if not rows or rows[-1] != example.row:
            rows.append(example.row)
    rng = random.Random(seed)  # noqa: S311 - a split, not a secret
    held: set[int] = set()
    for _, rows in sorted(by_label.items(), key=lambda item: item[0] or ""):
        count = min(len(rows) - 1, max(1, round(share * len(rows))))
        held.update(rng.sample(rows, count))
    return [e for e in examples if e.row not in held], [e for e in examples if e.row in held]


def sample_rows(examples: Sequence[Example], limit: int, *, seed: int) -> list[Example]:
    """At most `limit` examples in their order, labels in proportion and each with one at least; of more labels than
    `limit` chance keeps as many."""
    if len(examples) <= limit:
        return list(examples)
    by_label: dict[str | None, list[int]] = {}
    for place, example in enumerate(examples):
        by_label.setdefault(example.label, []).append(place)
    rng = random.Random(seed)  # noqa: S311 - a sample, not a secret
    kept: list[int] = []
    groups = [places for _, places in sorted(by_label.items(), key=lambda item: item[0] or "")]
    for places, count in zip(groups, _shares([len(places) for places in groups], limit, rng), strict=True):
        kept += rng.sample(places, count)
    return [examples[place] for place in sorted(kept)]


def _shares(sizes: Sequence[int], limit: int, rng: random.Random) -> list[int]:
    """How many of `limit` rows each label gets. What the rarest labels' one row is beyond their proportion, the most
    common ones give."""
    if len(sizes) > limit:
        chosen = set(rng.sample(range(len(sizes)), limit))
        return [int(place in chosen) for place in range(len(sizes))]
    total = sum(sizes)
    counts = [max(1, limit * size // total) for size in sizes]
    for _ in range(sum(counts) - limit):
        counts[counts.index(max(counts))] -= 1
    return counts


@dataclass(frozen=True)
class Batches:
    """The endless order of training batches, by index: batch `i` is the same whenever it is asked for in one run."""

    lengths: tuple[int, ...]
    batch_size: int
    seed: int

    @property
    def per_epoch(self) -> int:
        return -(-len(self.lengths) // self.batch_size)

    def from_step(self, step: int) -> Iterator[list[int]]:
        """Places of the examples of batch `step`, `step + 1`, …"""
        epoch, skip = divmod(step, self.per_epoch)
        while True:
            yield from self._epoch(epoch)[skip:]
            epoch, skip = epoch + 1, 0

    def _epoch(self, epoch: int) -> list[list[int]]:
        rng = random.Random(f"{self.seed}:{epoch}")  # noqa: S311 - an order, not a secret
        order = list(range(len(self.lengths)))
        rng.shuffle(order)
        batches: list[list[int]] = []
        bucket = self.batch_size * BUCKET_BATCHES
        for start in range(0, len(order), bucket):
            near = sorted(order[start : start + bucket], key=lambda place: self.lengths[place])
            batches += [near[at : at + self.batch_size] for at in range(0, len(near), self.batch_size)]
        rng.shuffle(batches)
        return batches
