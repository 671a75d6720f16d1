"""What a started process keeps for good, taken out of garbage collection.

A collection walks every object that could be part of a cycle: the modules, the model and the tokenizer's tables too,
some hundred thousand that never become garbage. Under load, with many requests alive, it came so often that it took
half of the event loop's time.
"""

from __future__ import annotations

import gc

YOUNG = 10_000
"""Objects made, less those freed, before the youngest are looked at; Python's own 700 suits smaller programs."""


def settle_heap() -> None:
    """Collect once, then leave all that is there out of every later collection. Call it when a process has started."""
    gc.collect()
    gc.freeze()
    _, *older = gc.get_threshold()
    gc.set_threshold(YOUNG, *older)
