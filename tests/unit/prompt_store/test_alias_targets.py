"""Where an alias may point, and how that is kept: old records still read, and one version is written as ever."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from prompt_store import Alias, AliasTarget, Ensemble, Share
from prompt_store.metadata import AliasEntry
from prompt_store.redis_records import alias_lines, read_alias_lines

NUMBERS = st.lists(st.integers(1, 10**9), min_size=2, max_size=16, unique=True)
WEIGHTS = st.floats(min_value=0, exclude_min=True, allow_infinity=False, allow_nan=False)


@st.composite
def targets(draw: st.DrawFn) -> AliasTarget:
    numbers = tuple(draw(NUMBERS))
    match draw(st.sampled_from(["version", "split", "vote", "mean"])):
        case "version":
            return AliasTarget(version=numbers[0])
        case "split":
            return AliasTarget(split=tuple(Share(version=number, weight=draw(WEIGHTS)) for number in numbers))
        case mode:
            return AliasTarget(ensemble=Ensemble(members=numbers, mode=mode))


@given(st.lists(targets(), max_size=4))
def test_alias_lines_when_read_back_are_the_same(several: list[AliasTarget]) -> None:
    entries = tuple(
        AliasEntry(name=f"a{place}", revision=place + 1, updated_at=0.1 + place, **target.model_dump())
        for place, target in enumerate(several)
    )
    assert read_alias_lines(alias_lines(entries)) == entries


@given(targets())
def test_record_when_read_back_is_the_same(target: AliasTarget) -> None:
    alias = Alias(task="nli", name="prod", revision=3, updated_at=1.5, **target.model_dump())
    assert Alias.model_validate_json(alias.model_dump_json()) == alias
    assert alias.versions == target.versions


def test_alias_to_one_version_has_the_form_it_always_had() -> None:
    fields = {"task": "nli", "name": "prod", "version": 2, "revision": 3, "updated_at": 1.5}
    assert json.loads(Alias.model_validate(fields).model_dump_json()) == fields
    del fields["task"]
    assert json.loads(AliasEntry.model_validate(fields).model_dump_json()) == fields
    deleted = {**fields, "version": 0}
    assert json.loads(AliasEntry.model_validate(deleted).model_dump_json()) == deleted
    assert AliasEntry.model_validate(deleted).versions == ()
    assert alias_lines(read_alias_lines("prod 3 1.5 2\ncanary 1 0.1 0")) == "prod 3 1.5 2\ncanary 1 0.1 0"


TWO = [{"version": 1, "weight": 1.0}, {"version": 2, "weight": 1.0}]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"version": 0},
        {"version": 1, "split": TWO},
        {"split": TWO, "ensemble": {"members": (1, 2), "mode": "vote"}},
        {"split": TWO[:1]},
        {"split": [TWO[0], TWO[0]]},
        {"split": [TWO[0], {"version": 2, "weight": 0.0}]},
        {"split": [TWO[0], {"version": 2, "weight": float("inf")}]},
        {"split": [TWO[0], {"version": 0, "weight": 1.0}]},
        {"ensemble": {"members": (1,), "mode": "vote"}},
        {"ensemble": {"members": (1, 1), "mode": "vote"}},
        {"ensemble": {"members": (0, 1), "mode": "vote"}},
        {"ensemble": {"members": tuple(range(1, 18)), "mode": "mean"}},
        {"ensemble": {"members": (1, 2), "mode": "median"}},
    ],
)
def test_target_that_is_not_exactly_one_sound_kind_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        AliasTarget.model_validate(fields)
