from __future__ import annotations

import os
import platform
import subprocess
import sys

import psutil
import pytest

from app.backbone.freed_memory import give_back_freed_memory

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told what to keep")

# Four pieces of 12 MiB at a time, as a prefill takes them, in a process of its own: what it is told lasts.
BATCHES = """
import resource, torch
from app.backbone.freed_memory import keep_freed_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        pieces = [torch.ones(12 << 20, dtype=torch.uint8) for _ in range(4)]
        del pieces
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
told_nothing = faults()
keep_freed_memory()
faults()
print(told_nothing, faults())
"""


def test_give_back_freed_memory_makes_the_process_smaller() -> None:
    pieces = [bytes(60_000) for _ in range(1000)]  # small enough for the heap
    del pieces[:-1]  # the last one holds the heap's end
    before = psutil.Process().memory_info().rss
    give_back_freed_memory()
    assert psutil.Process().memory_info().rss < before - 30e6
    assert pieces


def test_keep_freed_memory_lets_batches_find_their_memory_again() -> None:
    # The threshold above which memory comes from the system, said outright: glibc else moves it as it learns.
    told = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(128 << 10)}
    done = subprocess.run(
        [sys.executable, "-c", BATCHES], env=told, capture_output=True, text=True, timeout=120, check=True
    )
    told_nothing, kept = map(int, done.stdout.split())
    assert told_nothing > 10 * kept
