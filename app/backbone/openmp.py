"""OpenMP's teams of threads, one for each thread that ever computed in parallel, and how a process is left with one.

GNU's runtime lets the members of a team spin between two parallel regions, which a decode step has many of. But where
teams together have more members than there are cores, it puts them to sleep at once, and waking them costs more than
many a region takes: on 2 cores a decode step of 32 rows took 9.9 ms with a second team about, idle, and 6.3 ms without.
So whoever loads a model gives its team back, and threads that compute little compute alone.
"""

from __future__ import annotations

import ctypes
import logging
from functools import cache
from pathlib import Path

import torch

log = logging.getLogger(__name__)
_SOFT = 1  # omp_pause_soft: threads go, settings stay


def give_team_back() -> None:
    """End the threads of the calling thread's team; its next parallel region starts new ones. Does nothing where the
    runtime cannot."""
    pause = getattr(_runtime(), "omp_pause_resource_all", None)
    if pause is not None and pause(_SOFT):
        log.debug("the OpenMP runtime keeps its threads")


def compute_alone() -> None:
    """Have the calling thread compute by itself from now on, other threads as before."""
    torch.get_num_threads()  # torch sets the number when it is first asked on a thread, over what was set before
    set_threads = getattr(_runtime(), "omp_set_num_threads", None)
    if set_threads is not None:
        set_threads(1)


@cache
def _runtime() -> ctypes.CDLL | None:
    """The OpenMP library that torch has loaded, on Linux."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return None
    files = {line.split(maxsplit=5)[-1].strip() for line in maps.read_text().splitlines() if "/libgomp" in line}
    try:
        return ctypes.CDLL(min(files)) if len(files) == 1 else None
    except OSError:
        return None
