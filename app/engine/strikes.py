"""Rows that fail inside the model, remembered by what they hold: the fourth attempt is refused instead of run.

A row that breaks the model costs its neighbours a batch that is run again in halves. Clients retry what answers 5xx, so
one such row comes back and back. After `MOST` failures within `FORGET_S` the same prompt and tokens are refused as the
caller's error, which no client retries.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from app.backbone import Row
from app.engine.types import RowRequest
from app.errors import ChorusError, Quarantined

MOST = 3
FORGET_S = 600.0
KEPT = 4096
"""Rows remembered; beyond that the one that failed longest ago is forgotten."""

Content = tuple[Row, str | None]


@dataclass
class _Record:
    failures: int
    last: float


class Strikes:
    """Used inside the event loop alone; nothing is looked up before something has failed."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._records: OrderedDict[Content, _Record] = OrderedDict()

    def failed(self, row: RowRequest) -> None:
        """The model failed on this row, and on it alone."""
        content = _content(row)
        known = self._records.pop(content, None)
        count = 1 if known is None or self._too_old(known) else known.failures + 1
        self._records[content] = _Record(count, self._clock())
        if len(self._records) > KEPT:
            self._records.popitem(last=False)

    def check(self, row: RowRequest) -> None:
        """Raises Quarantined for a row that has failed `MOST` times lately."""
        if not self._records:
            return
        known = self._records.get(_content(row))
        if known is None:
            return
        if self._too_old(known):
            del self._records[_content(row)]
        elif known.failures >= MOST:
            raise Quarantined(f"the model has failed on this input {known.failures} times; it is not run again for now")

    def refused_or(self, row: RowRequest | ChorusError) -> RowRequest | ChorusError:
        """The row, or the error that it meets here or has met before."""
        try:
            if not isinstance(row, ChorusError):
                self.check(row)
        except Quarantined as error:
            return error
        return row

    def _too_old(self, record: _Record) -> bool:
        return self._clock() - record.last > FORGET_S


def _content(row: RowRequest) -> Content:
    return row.row, row.digest
