"""How many threads the engine computes with: fewer for as long as others want the cores.

Threads of a team wait for one another after every product, some hundred times a step, so one that has to wait for a
core holds up all. Linux tells for how long a thread was ready to run and had no core: where that is a large part of the
time, a smaller team is faster, and after a while a larger one is tried anew.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

import torch

Waits = Mapping[int, int]
"""Nanoseconds for which each thread, by its native id, has waited for a core since it began."""

CROWDED = 0.4
"""The share of its time that a thread of a team may wait for a core; beyond it the team is too large. Who has a core
to himself but for short interruptions waits for less, who shares one with a neighbour that computes for half."""
WINDOW_S, WINDOWS = 0.1, 2
"""A team in calm is too large after so many crowded windows in a row; one that was just changed after one."""
CALM_S, LONGEST_CALM_S = 1.0, 10.0
"""How long a team that was too large stays smaller before a larger one is tried; doubled by each try in vain."""
TRIAL = 3
"""Windows in which a team that has grown may show itself too large for the try to have been in vain."""


def waits_for_cores() -> Waits:
    """Of the calling thread and of those that Python knows nothing of: teams of OpenMP are among them. Empty where the
    system does not tell."""
    others = {thread.native_id for thread in threading.enumerate()} - {threading.get_native_id()}
    found = {}
    with suppress(OSError), os.scandir("/proc/self/task") as entries:
        for entry in entries:
            if int(entry.name) not in others:
                with suppress(OSError), open(f"{entry.path}/schedstat") as told:  # it may have ended meanwhile
                    found[int(entry.name)] = int(told.read().split()[1])
    return found


class Crew:
    """The threads of the thread that calls, which is always the same one. `size` is their number, itself among them."""

    def __init__(
        self,
        *,
        waits: Callable[[], Waits] = waits_for_cores,
        clock: Callable[[], float] = time.monotonic,
        apply: Callable[[int], None] = torch.set_num_threads,
    ) -> None:
        self._waits, self._clock, self._apply = waits, clock, apply
        self._most = self.size = 1  # others may read the size
        self._calm_s, self._retry_at = CALM_S, 0.0
        self._grown = False  # whether the team was smaller before
        self._good = self._bad = 0  # windows at this size that were not crowded; crowded ones, the last in a row
        self._window: tuple[float, Waits] | None = None

    def set_most(self, most: int) -> None:
        """What `size` may be; it is that at once."""
        self._most = most
        self._resize(most)

    def pause(self) -> None:
        """There is no work: what comes after it is measured anew."""
        self._window = None

    def step_done(self) -> None:
        """See from time to time whether the threads had cores."""
        now = self._clock()
        if self.size > 1 and (self._window is None or now - self._window[0] >= WINDOW_S):
            before, self._window = self._window, (now, self._waits())
            if before is not None:
                crowded = _longest_share(before, self._window) > CROWDED
                self._good, self._bad = (self._good, self._bad + 1) if crowded else (self._good + 1, 0)
                if self._bad == WINDOWS:
                    self._shrink(now)
                    return
        if self.size < self._most and now >= self._retry_at and (self._good or self.size == 1):
            self._resize(self.size + 1, grown=True)

    def _shrink(self, now: float) -> None:
        in_vain = self._grown and self._good < TRIAL
        self._calm_s = min(2 * self._calm_s, LONGEST_CALM_S) if in_vain else CALM_S
        self._retry_at = now + self._calm_s
        self._resize(self.size - (1 if in_vain else max(1, self.size // 4)))

    def _resize(self, size: int, *, grown: bool = False) -> None:
        self.size, self._grown, self._window = size, grown, None
        self._good, self._bad = 0, WINDOWS - 1
        self._apply(size)


def _longest_share(before: tuple[float, Waits], after: tuple[float, Waits]) -> float:
    """Of the time between, what the thread that waited longest has waited."""
    longest = max((waited - before[1].get(one, waited) for one, waited in after[1].items()), default=0)
    return longest / 1e9 / (after[0] - before[0])
