"""A started process's lasting objects are left out of garbage collection; what comes later is collected as ever."""

from __future__ import annotations

import subprocess
import sys

STORY = """
import gc, weakref
from app.heap import YOUNG, settle_heap

class Node:
    pass

def ring():
    one = Node()
    one.self = one
    return weakref.ref(one)

before = ring()
gc.disable()
forgotten = ring()
gc.enable()
settle_heap()
assert before() is None and forgotten() is None, "garbage of before was kept for good"
lasting, looked_at = gc.get_freeze_count(), len(gc.get_objects())
assert lasting > 1_000 and looked_at < lasting / 20, "lasting objects are still looked at"
assert gc.get_threshold()[0] == YOUNG
later = ring()
gc.collect()
assert later() is None, "garbage of later is not collected any more"
"""


def test_heap_when_settled_is_left_alone_and_later_garbage_still_goes() -> None:
    done = subprocess.run([sys.executable, "-c", STORY], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
