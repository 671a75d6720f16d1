from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from app.backbone import Row
from app.engine.scheduler import Phase, Scheduler
from app.engine.types import Request, Sampling


def make_request(name: str, length: int) -> Request:
    return Request.single(name, Row(tuple(range(length))), None, 1e9, Sampling(max_tokens=4))


def make_scheduler(**options: float) -> Scheduler:
    return Scheduler(**{"slots": 4, "max_batch_tokens": 100, **options})  # type: ignore[arg-type]


def names(batch: object) -> list[str]:
    return [sequence.request_id for sequence in batch.sequences]  # type: ignore[attr-defined]


def test_schedule_when_idle_returns_nothing() -> None:
    assert make_scheduler().schedule() is None


def test_schedule_takes_the_oldest_row_and_rows_of_its_length() -> None:
    scheduler = make_scheduler()
    for name, length in [("old", 10), ("long", 60), ("same", 11), ("short", 2), ("near", 9)]:
        scheduler.add(make_request(name, length))
    batch = scheduler.schedule()
    assert batch is not None
    assert batch.phase is Phase.PREFILL
    assert names(batch) == ["old", "same", "near"]


def test_schedule_of_a_prefill_stays_within_the_token_budget() -> None:
    scheduler = make_scheduler(slots=64, max_batch_tokens=50)
    for i in range(20):
        scheduler.add(make_request(str(i), 10))
    batch = scheduler.schedule()
    assert batch is not None
    assert len(batch.sequences) == 5


def test_schedule_of_a_row_longer_than_the_budget_still_runs_it() -> None:
    scheduler = make_scheduler(max_batch_tokens=5)
    scheduler.add(make_request("long", 50))
    assert names(scheduler.schedule()) == ["long"]


def test_schedule_lets_running_rows_decode_between_prefills() -> None:
    scheduler = make_scheduler(max_prefills_in_a_row=2, slots=8)
    for i in range(8):
        scheduler.add(make_request(str(i), 3 * 4**i))
    phases = []
    for _ in range(6):
        batch = scheduler.schedule()
        assert batch is not None
        phases.append(batch.phase)
        if batch.phase is Phase.PREFILL:
            scheduler.start_decoding(batch.sequences)
    assert phases == [Phase.PREFILL, Phase.PREFILL, Phase.DECODE] * 2


def test_finish_of_a_row_moves_the_last_into_its_slot() -> None:
    scheduler = make_scheduler()
    for name in "abc":
        scheduler.add(make_request(name, 5))
    scheduler.start_decoding(scheduler.schedule().sequences)  # type: ignore[union-attr]
    first = scheduler.running[0]
    moved = scheduler.finish(first)
    assert moved is not None
    assert (moved[0].request_id, moved[0].slot, moved[1]) == ("c", 0, 2)
    scheduler.check_integrity()


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), slots=st.integers(1, 6))
def test_any_history_starts_every_request_once_and_leaves_no_holes(seed: int, slots: int) -> None:
    rng = random.Random(seed)
    scheduler = make_scheduler(slots=slots)
    added, started, removed = 0, set(), set()
    for _ in range(80):
        action = rng.random()
        if action < 0.4:
            scheduler.add(make_request(str(added), rng.randint(1, 40)))
            added += 1
        elif action < 0.5 and scheduler.waiting:
            gone = rng.choice(list(scheduler.waiting))
            scheduler.waiting.remove(gone)
            removed.add(gone.request.id)
        elif action < 0.65 and scheduler.running:
            scheduler.finish(rng.choice(scheduler.running))
        else:
            batch = scheduler.schedule()
            if batch is not None and batch.phase is Phase.PREFILL:
                ids = set(names(batch))
                assert not ids & started
                assert batch.start + len(batch.sequences) <= slots
                started |= ids
                scheduler.start_decoding([s for s in batch.sequences if rng.random() < 0.6])
        scheduler.check_integrity()
    waiting = {group.request.id for group in scheduler.waiting}
    assert started | removed | waiting == {str(i) for i in range(added)}
