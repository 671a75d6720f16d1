"""Which rows run next. Knows no tensors, no clock and no threads: groups in, batches out.

New rows are prefilled as soon as there is a slot, the group whose turn it is always among them (fairness.py); in
between, all running rows decode one token. Running rows sit in slots 0 to R without holes.

Where the runner packs rows (`packed`), a prefill takes groups in their turn up to the token budget. Where it pads them
to the longest, the rest of the batch is chosen by length, so that little is padding.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum

from app.engine.fairness import FairQueue
from app.engine.groups import Group, Sequence
from app.engine.types import Request

_WINDOW = 8  # groups looked at for each free slot when a batch is filled up by length


class Phase(Enum):
    PREFILL = "prefill"
    DECODE = "decode"


@dataclass(frozen=True)
class Batch:
    """`sequences` in slot order, the first in slot `start`; rows of one group stand together."""

    phase: Phase
    start: int
    sequences: tuple[Sequence, ...]


@dataclass
class Scheduler:
    """`running[i]` sits in slot i."""

    slots: int
    max_batch_tokens: int
    max_padding: float = 0.2
    max_prefills_in_a_row: int = 4
    packed: bool = False
    waiting: FairQueue = field(default_factory=FairQueue)
    running: list[Sequence] = field(default_factory=list)
    _prefills: int = 0

    def add(self, request: Request) -> Group:
        group = Group(request)
        self.waiting.add(group)
        return group

    def schedule(self) -> Batch | None:
        """The next batch, or None when idle. Prefilled rows that go on must be handed to `start_decoding` before the
        next call."""
        chosen = self._choose() if self._may_prefill() else []
        if chosen:
            self._prefills += 1
            for slot, sequence in enumerate(chosen, len(self.running)):
                sequence.slot = slot
            return Batch(Phase.PREFILL, len(self.running), tuple(chosen))
        self._prefills = 0
        return Batch(Phase.DECODE, 0, tuple(self.running)) if self.running else None

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

    def check_integrity(self) -> None:
        """State the invariants; an AssertionError here is a bug of ours."""
        assert len(self.running) <= self.slots
        assert [sequence.slot for sequence in self.running] == list(range(len(self.running)))
        waiting = [sequence for group in self.waiting for sequence in group.waiting]
        everyone = [(sequence.request_id, sequence.index) for sequence in (*self.running, *waiting)]
        assert len(everyone) == len(set(everyone))
        self.waiting.check_integrity()

    def _may_prefill(self) -> bool:
        turn = not self.running or self._prefills < self.max_prefills_in_a_row
        return bool(self.waiting) and len(self.running) < self.slots and turn

    def _choose(self) -> list[Sequence]:
        """Rows for one prefill: of the group whose turn it is, then of others as they fit. None at all where that group
        has to wait for slots: what runs goes on meanwhile and frees them."""
        room = _Room(self)
        group = self.waiting.first()
        assert group is not None
        count = room.rows_of(group)
        while group is not None and count:
            room.add(group, count)
            self.waiting.take(group, count)
            group = self.waiting.first() if self.packed else None
            count = room.rows_of(group) if group is not None else 0
        if room.taken and not self.packed:
            self._fill_by_length(room)
        return room.taken

    def _fill_by_length(self, room: _Room) -> None:
        """Groups from the front of the queue, those nearest in length first."""
        width = room.widest
        front = self.waiting.front(_WINDOW * room.free)
        front.sort(key=lambda group: abs(group.waiting[0].row.new_tokens - width))
        for group in front:
            count = room.rows_of(group)
            if not count:
                return
            room.add(group, count)
            self.waiting.take(group, count)


class _Room:
    """What a prefill that is being put together still takes."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._rules = scheduler
        self.free = scheduler.slots - len(scheduler.running)
        self.taken: list[Sequence] = []
        self.tokens = self.widest = 0

    def rows_of(self, group: Group) -> int:
        """How many of the group's waiting rows can come in now. Coupled rows come together or not at all; rows that
        share text wait until as many slots are free as could be, since every part computes that text again."""
        waiting = len(group.waiting)
        if group.coupled:
            return waiting if self._fits(group, waiting) else 0
        if (
            group.request.shared
            and self._rules.packed
            and min(waiting, self._rules.slots) > self.free - len(self.taken)
        ):
            return 0
        low, high = 0, min(waiting, self.free - len(self.taken))
        while low < high:  # the more rows, the less it fits
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self._fits(group, middle) else (low, middle - 1)
        return low

    def add(self, group: Group, count: int) -> None:
        widths = group.widths(count, sharing=self._rules.packed)
        self.tokens, self.widest = self.tokens + sum(widths), max(self.widest, *widths)
        self.taken += [group.waiting[i] for i in range(count)]

    def _fits(self, group: Group, count: int) -> bool:
        rows = len(self.taken) + count
        if rows > self.free:
            return False
        if not self.taken and (count == 1 or group.coupled):
            return True  # what stands at the very front runs, however long it is
        widths = group.widths(count, sharing=self._rules.packed)
        tokens = self.tokens + sum(widths)
        if self._rules.packed:
            return tokens <= self._rules.max_batch_tokens
        area = max(self.widest, *widths) * rows
        return area <= self._rules.max_batch_tokens and area - tokens <= self._rules.max_padding * area
