"""Which rows run next. Knows no tensors, no clock and no threads: rows in, batches out.

New rows are prefilled as soon as there is a slot, rows of similar length together so that little is padding, the oldest
row always among them; in between, all running rows decode one token. Running rows sit in slots 0 to R without holes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum

from app.engine.types import Request


class Phase(Enum):
    PREFILL = "prefill"
    DECODE = "decode"


@dataclass
class Sequence:
    """A request on its way. `generated` counts its tokens so far; the scheduler keeps `slot` true."""

    request: Request
    generated: int = 0
    slot: int = -1

    @property
    def length(self) -> int:
        """Tokens in its slot: the row, and every generated token but the newest, which is fed next."""
        return self.request.row.total + max(0, self.generated - 1)


@dataclass(frozen=True)
class Batch:
    """`sequences` in slot order, the first in slot `start`."""

    phase: Phase
    start: int
    sequences: tuple[Sequence, ...]


@dataclass
class Scheduler:
    """`waiting` is in order of arrival; `running[i]` sits in slot i."""

    slots: int
    max_batch_tokens: int
    max_padding: float = 0.2
    max_prefills_in_a_row: int = 4
    waiting: deque[Sequence] = field(default_factory=deque)
    running: list[Sequence] = field(default_factory=list)
    _prefills: int = 0

    def add(self, request: Request) -> None:
        self.waiting.append(Sequence(request))

    def schedule(self) -> Batch | None:
        """The next batch, or None when idle. Prefilled sequences must be settled by `commit` before the next call."""
        if self.can_prefill():
            self._prefills += 1
            chosen = self._choose()
            for slot, sequence in enumerate(chosen, len(self.running)):
                sequence.slot = slot
            return Batch(Phase.PREFILL, len(self.running), tuple(chosen))
        self._prefills = 0
        return Batch(Phase.DECODE, 0, tuple(self.running)) if self.running else None

    def can_prefill(self) -> bool:
        turn = not self.running or self._prefills < self.max_prefills_in_a_row
        return bool(self.waiting) and len(self.running) < self.slots and turn

    def start_decoding(self, sequences: Iterable[Sequence]) -> list[tuple[Sequence, int]]:
        """Let prefilled sequences run on. Returns the moves (sequence, its old slot) that close the holes which their
        neighbours, done after the prefill, leave."""
        moves = []
        for sequence in sequences:
            if sequence.slot != len(self.running):
                moves.append((sequence, sequence.slot))
                sequence.slot = len(self.running)
            self.running.append(sequence)
        return moves

    def finish(self, sequence: Sequence) -> tuple[Sequence, int] | None:
        """Take a running sequence out. The last one moves into its slot: returns (that sequence, its old slot)."""
        last = self.running.pop()
        if last is sequence:
            return None
        old, last.slot = last.slot, sequence.slot
        self.running[sequence.slot] = last
        return last, old

    def remove_waiting(self, request_ids: set[str]) -> list[Sequence]:
        gone = [sequence for sequence in self.waiting if sequence.request.id in request_ids]
        if gone:
            self.waiting = deque(s for s in self.waiting if s.request.id not in request_ids)
        return gone

    def check_integrity(self) -> None:
        """State the invariants; an AssertionError here is a bug of ours."""
        assert len(self.running) <= self.slots
        assert [sequence.slot for sequence in self.running] == list(range(len(self.running)))
        ids = [sequence.request.id for sequence in (*self.running, *self.waiting)]
        assert len(ids) == len(set(ids))

    def _choose(self) -> list[Sequence]:
        """Rows for one prefill: the oldest, and those of the front of the queue whose length is nearest to it."""
        free = self.slots - len(self.running)
        oldest = self.waiting[0]
        width = oldest.request.new_tokens
        front = [self.waiting[i] for i in range(1, min(len(self.waiting), 8 * free))]
        front.sort(key=lambda sequence: abs(sequence.request.new_tokens - width))
        chosen, widest, tokens = [oldest], width, width
        for sequence in front:
            new = sequence.request.new_tokens
            area = max(widest, new) * (len(chosen) + 1)
            if len(chosen) == free or area > self.max_batch_tokens or area - tokens - new > self.max_padding * area:
                break
            chosen.append(sequence)
            widest, tokens = max(widest, new), tokens + new
        taken = {id(sequence) for sequence in chosen}
        self.waiting = deque(sequence for sequence in self.waiting if id(sequence) not in taken)
        return chosen
