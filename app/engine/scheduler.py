"""Which rows run next. Knows no tensors, no clock and no threads: groups in, batches out.

New rows are prefilled as soon as there is a slot, the group whose turn it is always among them (fairness.py); in
between, all running rows decode one token. Running rows sit in slots 0 to R without holes.

Where the runner packs rows (`packed`), a prefill takes groups in their turn up to the token budget. Where it pads them
to the longest, the rest of the batch is chosen by length, so that little is padding; what rows of a group have in
common (`shares_text`) is then computed before them, in a pass of its own, and only the rest of each is padded.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum

from app.engine.fairness import FairQueue
from app.engine.groups import WORTH_A_PASS, Group, Sequence
from app.engine.types import Request

_WINDOW = 8  # groups looked at for each free slot when a batch is filled up by length


class Phase(Enum):
    PREFILL = "prefill"
    DECODE = "decode"


@dataclass(frozen=True)
class Batch:
    """`sequences` in slot order, the first in slot `start`; rows of one group stand together. `sharing`: groups whose
    rows' common text is to be computed once."""

    phase: Phase
    start: int
    sequences: tuple[Sequence, ...]
    sharing: frozenset[Group] = frozenset()


@dataclass
class Scheduler:
    """`running[i]` sits in slot i."""

    slots: int
    max_batch_tokens: int
    max_padding: float = 0.2
    max_prefills_in_a_row: int = 4
    packed: bool = False
    shares_text: bool = False
    worth_a_pass: int = WORTH_A_PASS
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
        room = self._choose() if self._may_prefill() else None
        if room is not None and room.taken:
            self._prefills += 1
            for slot, sequence in enumerate(room.taken, len(self.running)):
                sequence.slot = slot
            return Batch(Phase.PREFILL, len(self.running), tuple(room.taken), frozenset(room.texts))
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

    def _choose(self) -> _Room:
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
        return room

    def _fill_by_length(self, room: _Room) -> None:
        """Groups from the front of the queue, those nearest in length first."""
        width = room.widest
        front = [group for group in self.waiting.front(_WINDOW * room.free) if group not in room.texts]
        front.sort(key=lambda group: abs(room.width_of(group) - width))
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
        self.texts: dict[Group, int] = {}  # tokens that are computed once, in a pass before the rows

    def rows_of(self, group: Group) -> int:
        """How many of the group's waiting rows can come in now. Coupled rows come together or not at all; rows that
        share text wait until as many slots are free as could be, since every part computes that text again."""
        waiting = len(group.waiting)
        shares = (self._rules.packed and group.request.shared) or self._apart(group, waiting)
        if group.coupled:
            return waiting if self._fits(group, waiting) else 0
        low, high = 0, min(waiting, self.free - len(self.taken))
        if shares and min(waiting, self._rules.slots) > high:
            return 0
        if self._apart(group, waiting):  # one row alone may be too wide where several are not
            return next((count for count in range(high, 0, -1) if self._fits(group, count)), 0)
        while low < high:  # the more rows, the less it fits
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self._fits(group, middle) else (low, middle - 1)
        return low

    def add(self, group: Group, count: int) -> None:
        widths, apart = self._widths(group, count)
        self.tokens, self.widest = self.tokens + sum(widths), max(self.widest, *widths)
        self.taken += [group.waiting[i] for i in range(count)]
        if apart or self._rules.packed:
            self.texts[group] = apart

    def width_of(self, group: Group) -> int:
        """About what its first row adds to the width, if as many come with it as can."""
        return group.waiting[0].row.new_tokens - self._apart(group, len(group.waiting))

    def _apart(self, group: Group, count: int) -> int:
        """Tokens that `count` rows of the group have in common and a pass before them computes."""
        if self._rules.packed or not self._rules.shares_text:
            return 0
        return group.text_apart(count, least=self._rules.worth_a_pass)

    def _widths(self, group: Group, count: int) -> tuple[list[int], int]:
        """New tokens of each row, and of the text that is computed apart from them."""
        apart = self._apart(group, count)
        widths = group.widths(count, sharing=self._rules.packed)
        return [width - apart for width in widths], apart

    def _fits(self, group: Group, count: int) -> bool:
        rows = len(self.taken) + count
        if rows > self.free:
            return False
        if not self.taken and (count == 1 or group.coupled):
            return True  # what stands at the very front runs, however long it is
        widths, apart = self._widths(group, count)
        texts = sum(self.texts.values()) + apart
        tokens = self.tokens + sum(widths) + texts
        if self._rules.packed:
            return tokens <= self._rules.max_batch_tokens
        area = max(self.widest, *widths) * rows + texts
        allowed = max(self._rules.max_padding * area, apart)  # what is left out computes the text again
        return area <= self._rules.max_batch_tokens and area - tokens <= allowed
