from __future__ import annotations

import platform

import psutil
import pytest

from app.backbone.freed_memory import give_back_freed_memory


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps what this hands back")
def test_give_back_freed_memory_makes_the_process_smaller() -> None:
    pieces = [bytes(60_000) for _ in range(1000)]  # small enough for the heap
    del pieces[:-1]  # the last one holds the heap's end
    before = psutil.Process().memory_info().rss
    give_back_freed_memory()
    assert psutil.Process().memory_info().rss < before - 30e6
    assert pieces
