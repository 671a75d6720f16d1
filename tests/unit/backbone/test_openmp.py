from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import TypeVar

import pytest
import torch

from app.backbone.openmp import _runtime, compute_alone, give_team_back

T = TypeVar("T")
pytestmark = pytest.mark.skipif(_runtime() is None, reason="not GNU's OpenMP")


def on_a_thread(call: Callable[[], T]) -> T:
    """What `call` gives on a thread of its own, which has ended by then."""
    found: list[T] = []
    thread = threading.Thread(target=lambda: found.append(call()))
    thread.start()
    thread.join()
    return found[0]


def tasks() -> int:
    """Threads of this process, those of OpenMP among them."""
    return len(os.listdir("/proc/self/task"))


def work() -> torch.Tensor:
    """In torch's own kernels: roots and the like are MKL's, whose threads `torch.set_num_threads` sets for good."""
    return torch.ones(1 << 20).mul(2).sum()


def test_a_team_given_back_is_gone_and_comes_again_when_needed() -> None:
    def with_a_team() -> tuple[int, int, int, float]:
        torch.set_num_threads(3)
        before = tasks()
        work()
        with_team = tasks()
        give_team_back()
        return before, with_team, tasks(), float(work())

    threads = torch.get_num_threads()
    try:
        before, with_team, after, total = on_a_thread(with_a_team)
    finally:
        torch.set_num_threads(threads)
    assert with_team == before + 2
    assert after == before
    assert total == float(2 << 20)


def test_a_thread_told_to_compute_alone_starts_no_team_and_others_keep_their_number() -> None:
    def alone() -> tuple[int, int, int]:
        compute_alone()
        before = tasks()
        work()
        return torch.get_num_threads(), before, tasks()

    threads = torch.get_num_threads()
    count, before, after = on_a_thread(alone)
    assert count == 1
    assert after <= before
    assert torch.get_num_threads() == threads
    assert on_a_thread(torch.get_num_threads) == threads
