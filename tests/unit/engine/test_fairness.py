"""Turns: no task and no tenant can keep others waiting for more than a few batches."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.backbone import Backbone, Row
from app.engine import Request, RowRequest, Sampling
from app.engine.fairness import FairQueue
from app.engine.groups import Group
from app.engine.scheduler import Phase, Scheduler
from tests.engines import Clock, make_engine


def request(name: str, task: str, *, tenant: str = "", length: int = 10, rows: int = 1, answer: int = 4) -> Request:
    row = RowRequest(Row(tuple(range(length))), None, Sampling(max_tokens=answer))
    return Request(name, (row,) * rows, 1e9, flow=(tenant, task))


def served(queue: FairQueue, count: int) -> list[tuple[str, str]]:
    flows = []
    for _ in range(count):
        group = queue.first()
        assert group is not None
        flows.append(group.request.flow)
        queue.take(group, len(group.waiting))
        queue.check_integrity()
    return flows


def test_row_behind_a_flood_of_another_task_is_next_but_one() -> None:
    queue = FairQueue()
    for i in range(500):
        queue.add(Group(request(f"hot-{i}", "hot")))
    served(queue, 20)
    queue.add(Group(request("cold", "cold")))
    assert ("", "cold") in served(queue, 2)


def test_tenant_with_a_hundred_hot_tasks_gets_no_more_than_one_with_a_single_task() -> None:
    queue = FairQueue()
    for i in range(300):
        queue.add(Group(request(f"hot-{i}", f"task-{i % 100}", tenant="greedy")))
        queue.add(Group(request(f"cold-{i}", "only", tenant="modest")))
    shares = Counter(tenant for tenant, _ in served(queue, 200))
    assert shares == {"greedy": 100, "modest": 100}


def test_turns_are_counted_in_tokens_and_not_in_rows() -> None:
    queue = FairQueue()
    for i in range(300):
        queue.add(Group(request(f"long-{i}", "long", length=90, answer=10)))
        queue.add(Group(request(f"short-{i}", "short", length=10, answer=10)))
    shares = Counter(task for _, task in served(queue, 120))
    assert shares["short"] == pytest.approx(5 * shares["long"], abs=6)


def test_idling_earns_no_credit_and_work_out_of_turn_is_paid_back() -> None:
    queue = FairQueue()
    for i in range(50):
        queue.add(Group(request(f"a-{i}", "a")))
    served(queue, 30)
    for i in range(50):
        queue.add(Group(request(f"b-{i}", "b")))
    assert abs(Counter(task for _, task in served(queue, 20))["b"] - 10) <= 1  # not all 20, though b had nothing so far
    front = [group for group in queue.front(40) if group.request.flow[1] == "b"][:5]
    for group in front:
        queue.take(group, 1)  # out of turn
    assert Counter(task for _, task in served(queue, 5)) == {"a": 5}


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_counters_hold_whatever_is_added_taken_and_removed(seed: int) -> None:
    rng, queue = random.Random(seed), FairQueue()
    groups: list[Group] = []
    for i in range(60):
        action = rng.random()
        if action < 0.5:
            tenant, task = rng.choice("xy"), rng.choice("abc")
            groups.append(
                Group(request(str(i), task, tenant=tenant, length=rng.randint(1, 20), rows=rng.randint(1, 3)))
            )
            queue.add(groups[-1])
        elif action < 0.8 and queue:
            group = queue.first()
            assert group is not None
            queue.take(group, rng.randint(1, len(group.waiting)))
        elif groups:
            queue.remove(rng.choice(groups))
        queue.check_integrity()
    queue.clear()
    queue.check_integrity()
    assert queue.first() is None
    assert queue.rows == queue.tokens == 0


@pytest.mark.parametrize("packed", [False, True])
def test_flood_of_one_task_delays_a_row_of_another_by_one_batch_at_most(packed: bool) -> None:
    """The row's length fits none of the flood's, so only its turn can bring it in."""
    scheduler = Scheduler(slots=8, max_batch_tokens=100, packed=packed)
    for i in range(400):
        scheduler.add(request(f"hot-{i}", "hot", length=10))
    for _ in range(10):
        scheduler.schedule()
    scheduler.add(request("cold", "cold", length=60))
    batches = [scheduler.schedule() for _ in range(2)]
    started = [sequence.request_id for batch in batches if batch for sequence in batch.sequences]
    assert "cold" in started


def test_rows_that_share_text_wait_for_slots_and_split_only_when_they_must() -> None:
    def fan_out(name: str, rows: int) -> Request:
        row = RowRequest(Row(tuple(range(50, 90))), None, Sampling(max_tokens=4))
        return Request(name, (row,) * rows, 1e9, shared=39, flow=("", name))

    scheduler = Scheduler(slots=4, max_batch_tokens=100, packed=True)
    scheduler.add(request("one", "one"))
    scheduler.start_decoding(scheduler.schedule().sequences)  # type: ignore[union-attr]
    scheduler.add(fan_out("wide", 6))
    batch = scheduler.schedule()
    assert batch is not None
    assert batch.phase is Phase.DECODE  # three slots are free, and four could be
    scheduler.finish(scheduler.running[0])
    sizes = []
    while (batch := scheduler.schedule()) is not None:
        assert batch.phase is Phase.PREFILL
        sizes.append([sequence.index for sequence in batch.sequences])
        scheduler.check_integrity()
    assert sizes == [[0, 1, 2, 3], [4, 5]]


def test_group_longer_than_the_token_budget_is_split_into_runs() -> None:
    scheduler = Scheduler(slots=8, max_batch_tokens=25, packed=True)
    scheduler.add(request("many", "t", rows=5))
    sizes = []
    while (batch := scheduler.schedule()) is not None:
        sizes.append(len(batch.sequences))
    assert sizes == [2, 2, 1]


def test_expired_row_is_neither_run_nor_counted_as_work(llama: Backbone) -> None:
    clock = Clock()
    engine = make_engine(llama, clock)
    row = RowRequest(Row((5, 6, 7)), None, Sampling(max_tokens=4))
    engine.submit(Request("late", (row, row), 1.0, flow=("", "late")))
    clock.now = 2.0
    assert [(event.row, event.finish) for event in engine.step()] == [(0, "timeout"), (1, "timeout")]
    assert engine.stats().prompt_tokens == engine.stats().waiting_tokens == 0
    engine.submit(Request("next", (row,), 9.0, flow=("", "late")))
    engine.submit(Request("other", (row,), 9.0, flow=("", "other")))
    group = engine.scheduler.waiting.first()
    assert group is not None
    assert group.request.id == "next"  # nothing was charged for the rows that never ran
