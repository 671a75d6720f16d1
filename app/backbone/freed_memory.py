"""Memory that was freed and that the C library keeps for itself: after loading, and after large batches, much of it."""

from __future__ import annotations

import ctypes
from contextlib import suppress


def give_back_freed_memory() -> None:
    """Have the C library hand freed memory back to the system, where it knows how (glibc). Takes milliseconds."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
