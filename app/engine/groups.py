"""Groups and their rows on the way through the engine: the mutable side of requests."""

from __future__ import annotations

from collections import deque

from app.engine.types import Request, RowRequest

WORTH_A_PASS = 128
"""Tokens that a pass of its own over what rows have in common has to save: below, it costs more than it spares."""


class Sequence:
    """A row on its way. `generated` counts its tokens so far; the scheduler keeps `slot` true."""

    __slots__ = ("ended", "generated", "group", "index", "most", "request_id", "row", "slot", "total")

    def __init__(self, group: Group, index: int) -> None:
        self.group, self.index, self.row = group, index, group.request.rows[index]
        self.request_id = group.request.id
        self.total = self.row.row.total
        self.most = self.row.sampling.max_tokens if self.row.sampling else 0
        self.generated, self.slot, self.ended = 0, -1, False

    @property
    def length(self) -> int:
        """Tokens in its slot: the row, and every generated token but the newest, which is fed next."""
        return self.total + max(0, self.generated - 1)


class Group:
    """A request on its way: `waiting` rows have not been prefilled, `open` ones have not ended."""

    __slots__ = ("open", "request", "sequences", "waiting")

    def __init__(self, request: Request) -> None:
        self.request = request
        self.sequences = [Sequence(self, index) for index in range(len(request.rows))]
        self.waiting = deque(self.sequences)
        self.open = len(self.sequences)

    @property
    def coupled(self) -> bool:
        return self.request.coupled

    def widths(self, count: int, *, sharing: bool) -> list[int]:
        """New tokens of its next `count` waiting rows, prefilled together. With `sharing` the first one computes the
        text that all have in common."""
        rows: list[RowRequest] = [self.waiting[i].row for i in range(count)]
        saved = self.request.shared if sharing else 0
        return [row.new_tokens - (saved if i else 0) for i, row in enumerate(rows)]

    def text_apart(self, count: int, *, least: int) -> int:
        """Tokens of the text that `count` of its rows have in common, if a pass of its own over them saves at least
        `least`; else 0."""
        return self.request.shared if self.request.shared * (count - 1) >= least else 0
