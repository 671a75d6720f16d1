"""Which version answers a row: fixed for a request, drawn by weight for a split."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from app.api.pinning import Draws, pin_or_error, pin_row
from app.api.schemas.generate import Options
from app.backbone import Verbalizer
from app.errors import InvalidRequest
from app.registry import Mode, Resolved
from prompt_store import Task, TaskSpec
from tests.fakes import fake_prompt

LABELS = Verbalizer(("a", "b"), ((" a",), (" b",)), (((1,),), ((2,),)), terminated=False)


def resolved(*weights: float, mode: Mode = "split", task: str = "mood") -> Resolved:
    known = Task(name=task, id="t1", spec=TaskSpec(fields=("text",)), created_at=0, updated_at=0)
    members = tuple(fake_prompt(number) for number in range(1, len(weights) + 1))
    return Resolved(f"{task}:prod", known, mode, members, weights)


def shares(target: Resolved, seeds: list[int | None]) -> Counter[int]:
    draws = Draws()
    return Counter(draws.pick(target, "x", seed).version for seed in seeds)


@pytest.mark.parametrize("seeds", [[None] * 4000, list(range(4000))], ids=["counted", "seeded"])
def test_draws_of_a_split_follow_the_weights_within_a_binomial_bound(seeds: list[int | None]) -> None:
    found = shares(resolved(0.7, 0.25, 0.05), seeds)
    for version, weight in ((1, 0.7), (2, 0.25), (3, 0.05)):
        assert abs(found[version] - 4000 * weight) < 5 * math.sqrt(4000 * weight * (1 - weight))


def test_draw_with_a_seed_is_the_same_in_every_process_and_in_any_order() -> None:
    target = resolved(0.5, 0.5)
    inputs = [f"text {number}" for number in range(64)]
    one, other = Draws(), Draws()
    first = [one.pick(target, given, 7).version for given in inputs]
    assert [other.pick(target, given, 7).version for given in reversed(inputs)] == first[::-1]
    assert set(first) == {1, 2}


def test_draw_with_a_seed_is_the_same_for_a_text_and_its_only_field() -> None:
    target, draws = resolved(0.5, 0.5), Draws()
    for seed in range(32):
        assert draws.pick(target, "x", seed) == draws.pick(target, {"text": "x"}, seed)


def test_draws_with_one_seed_differ_between_tasks() -> None:
    draws = Draws()
    pairs = [
        tuple(draws.pick(resolved(0.5, 0.5, task=task), "x", seed).version for task in ("mood", "topic"))
        for seed in range(64)
    ]
    assert len(set(pairs)) == 4


def test_draws_without_a_seed_differ_between_processes() -> None:
    target = resolved(0.5, 0.5)
    one, other = Draws(), Draws()
    assert [one.pick(target, "x", None).version for _ in range(64)] != [
        other.pick(target, "x", None).version for _ in range(64)
    ]


def test_pinned_row_of_a_split_has_the_one_member_drawn() -> None:
    row = pin_row(Draws(), resolved(1e-9, 1 - 1e-9), "x", Options())
    assert (row.mode, [member.version for member in row.members]) == ("one", [2])


def test_pinned_row_of_an_ensemble_has_all_members_in_order() -> None:
    row = pin_row(Draws(), resolved(0.5, 0.5, mode="mean"), "x", Options())
    assert [member.version for member in row.members] == [1, 2]
    assert row.is_coupled
    assert row.fingerprints == ["mood@1:000000000000", "mood@2:000000000000"]


def test_calibrate_of_free_text_is_refused_and_of_labels_is_not() -> None:
    target = resolved(1.0, mode="version")
    error = pin_or_error(Draws(), target, "x", Options(calibrate=True))
    assert isinstance(error, InvalidRequest)
    assert error.param == "calibrate"
    labelled = Resolved(target.ref, target.task, "version", (fake_prompt(1, verbalizer=LABELS),), (1.0,))
    assert pin_row(Draws(), labelled, "x", Options(calibrate=True)).has_labels


def test_reference_that_was_not_resolved_stays_its_error() -> None:
    error = InvalidRequest("no")
    assert pin_or_error(Draws(), error, "x", Options()) is error
