from __future__ import annotations

import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from app.backbone import Row
from app.backbone.verbalizer import Verbalizer
from app.engine.scheduler import Batch, Phase, Scheduler
from app.engine.types import Request, RowRequest, Sampling

WORDS = Verbalizer(("a", "b"), (("a",), ("b",)), (((5,),), ((6, 7),)), terminated=False)


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


def test_rows_over_one_text_come_with_more_padding_where_leaving_one_out_would_cost_the_text_again() -> None:
    for length, together in ((60, 3), (10, 1)):
        scheduler = make_scheduler(max_batch_tokens=300, shares_text=True, worth_a_pass=1)
        scheduler.add(make_group("fan-out", [length + 2, length + 30, length + 3], shared=length))
        batch = scheduler.schedule()
        assert batch is not None
        assert len(batch.sequences) == together


def test_rows_over_one_text_wait_for_as_many_slots_as_they_could_have() -> None:
    scheduler = make_scheduler(max_batch_tokens=300, shares_text=True, worth_a_pass=1, slots=3)
    scheduler.add(make_request("running", 10))
    scheduler.start_decoding(scheduler.schedule().sequences)  # type: ignore[union-attr]
    scheduler.add(make_group("fan-out", [33, 33, 33], shared=30))
    assert scheduler.schedule().phase is Phase.DECODE  # type: ignore[union-attr]
    scheduler.finish(scheduler.running[0])
    assert len(scheduler.schedule().sequences) == 3  # type: ignore[union-attr]


def make_group(name: str, lengths: list[int], **options: Any) -> Request:
    """Rows of the lengths; those of the ids they have in common are the same."""
    rows = tuple(RowRequest(Row(tuple(range(length))), None, Sampling(max_tokens=4)) for length in lengths)
    return Request(name, rows, 1e9, **options)


def random_request(rng: random.Random, name: str) -> Request:
    """A row (with or without a cached prompt, or labels), rows that share a text, or coupled ones."""
    kind = rng.random()
    if kind < 0.2:
        shared = rng.randint(1, 40)
        return make_group(name, [shared + rng.randint(1, 12) for _ in range(rng.randint(2, 5))], shared=shared)
    if kind < 0.3:
        return make_group(name, [rng.randint(1, 40) for _ in range(rng.randint(2, 3))], coupled=True)
    if kind < 0.5:
        row = Row((*(-1 - j for j in range(9)), *range(rng.randint(1, 40))), prefix=9)
        return Request.single(name, row, "digest", 1e9, verbalizer=WORDS)
    return make_request(name, rng.randint(1, 40))


def check_padding(batch: Batch, share: float) -> None:
    """At most `share` of what is computed is padding, prompts being cached. By design there may be more where coupled
    rows had to come together, and as much as a text where rows that begin with it would have computed it again."""
    groups = {row.group for row in batch.sequences}
    if any(group.coupled for group in groups):
        return
    texts = {group: group.request.shared for group in batch.sharing}
    widths = [row.row.new_tokens - texts.get(row.group, 0) for row in batch.sequences]
    computed = max(widths) * len(widths) + sum(texts.values())
    padding = computed - sum(widths) - sum(texts.values())
    assert min(widths) > 0
    assert padding <= max([share * computed, *texts.values()])


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    slots=st.integers(3, 8),
    shares=st.booleans(),
    share=st.sampled_from([0.05, 0.2, 0.5]),
)
def test_any_history_starts_every_row_once_leaves_no_holes_and_pads_little(
    seed: int, slots: int, shares: bool, share: float
) -> None:
    rng = random.Random(seed)
    scheduler = make_scheduler(slots=slots, shares_text=shares, worth_a_pass=20, max_padding=share)
    added, started, removed = set(), set(), set()
    for number in range(80):
        action = rng.random()
        if action < 0.4:
            group = scheduler.add(random_request(rng, str(number)))
            added |= {(row.request_id, row.index) for row in group.sequences}
        elif action < 0.5 and scheduler.waiting:
            gone = rng.choice(list(scheduler.waiting))
            removed |= {(row.request_id, row.index) for row in gone.waiting}
            scheduler.waiting.remove(gone)
        elif action < 0.65 and scheduler.running:
            scheduler.finish(rng.choice(scheduler.running))
        else:
            batch = scheduler.schedule()
            if batch is not None and batch.phase is Phase.PREFILL:
                rows = {(row.request_id, row.index) for row in batch.sequences}
                assert len(rows) == len(batch.sequences)
                assert not rows & started
                assert batch.start + len(batch.sequences) <= slots
                check_padding(batch, share)
                started |= rows
                scheduler.start_decoding([s for s in batch.sequences if rng.random() < 0.6])
        scheduler.check_integrity()
    waiting = {(row.request_id, row.index) for group in scheduler.waiting for row in group.waiting}
    assert started | removed | waiting == added
