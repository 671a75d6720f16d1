"""Memory that was freed and that the C library keeps for itself: after loading, and after large batches, much of it.

A batch that finds its memory there is faster: each page that has to come from the system anew costs microseconds, which
for the 12 MB of a prefill's queries, keys and values on a virtual machine were four times the product they hold. So the
library is told to keep what batches free, and gives it back when the engine rests.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_… of malloc.h


def give_back_freed_memory() -> None:
    """Have the C library hand freed memory back to the system, where it knows how (glibc). Takes milliseconds."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def keep_freed_memory() -> None:
    """From now on have the C library (glibc) keep up to 256 MiB of what is freed, in pieces of up to 32 MiB."""
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        for parameter, size in ((_MMAP_THRESHOLD, 32 << 20), (_TRIM_THRESHOLD, 256 << 20)):
            library.mallopt(parameter, size)
