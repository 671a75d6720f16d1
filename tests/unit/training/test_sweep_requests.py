"""What a sweep may ask for, what becomes of it, and which value an error names."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from app.api.errors import from_pydantic
from app.backbone import Backbone
from app.errors import CapabilityMissing, ChorusError, ContextTooLong, InvalidRequest, SweepTooLarge
from app.training.datasets import DatasetStore
from app.training.plan import Plan
from app.training.planning import Planner
from prompt_store import PromptStore, StoreError
from tests.training_data import mood_request


def plan(planner: Planner, sweep: dict[str, Any], **more: Any) -> Plan:
    return planner.plan(mood_request(sweep=sweep, **more))[0]


def test_members_are_all_combinations_in_order(planner: Planner) -> None:
    made = plan(planner, {"learning_rate": [0.1, "auto"], "seed": [3, 1], "num_virtual_tokens": [4]})
    assert [one.settings for one in made.members] == [
        {"num_virtual_tokens": 4, "learning_rate": rate, "seed": seed} for rate in (0.1, "auto") for seed in (3, 1)
    ]
    assert [one.hyperparameters.seed for one in made.members] == [3, 1, 3, 1]
    assert {one.template for one in made.members} == {made.template} == {"<prompt:4>{text}\nAnswer:"}
    assert made.halving


def test_member_has_the_plan_of_a_job_of_its_own(planner: Planner) -> None:
    made = plan(
        planner,
        {"num_virtual_tokens": [4, 9], "init": ["vocab", "labels"]},
        hyperparameters={"learning_rate": 0.5, "seed": 7},
    )
    alone = planner.plan(
        mood_request(
            method={"init": "labels"}, hyperparameters={"learning_rate": 0.5, "seed": 7, "num_virtual_tokens": 9}
        )
    )[0]
    assert made.of(made.members[3]) == alone


def test_words_follow_each_members_template(planner: Planner) -> None:
    made = plan(planner, {"template": ["<prompt:4>{text} It was", "<prompt:4>{text} It was "]})
    words = [made.of(one).verbalizer for one in made.members]
    assert words == [{"bad": (" bad",), "good": (" good",)}, {"bad": ("bad",), "good": ("good",)}]
    assert made.members[0].verbalizer is None  # the plan's own: it is not kept again for each member


def test_text_of_one_beginning_stays_with_it(planner: Planner) -> None:
    made = plan(planner, {"init": ["text", "vocab"]}, method={"init": "text", "init_text": "Is it good?"})
    told = [one.method.model_dump(exclude_none=True) for one in made.members]
    assert [one.get("init_text") for one in told] == ["Is it good?", None]


def test_methods_and_their_options_are_swept(planner: Planner) -> None:
    methods = [{"type": "p_tuning"}, {"type": "prompt_tuning", "reparametrization": "none"}, {"type": "prefix_tuning"}]
    made = plan(planner, {"method": methods, "seed": [0, 1]})
    assert [one.method.type for one in made.members] == [of["type"] for of in methods for _ in range(2)]
    assert made.method.type == "p_tuning"


def test_more_members_than_a_sweep_may_have_are_refused(planner: Planner) -> None:
    assert len(plan(planner, {"seed": list(range(64))}).members) == 64
    with pytest.raises(SweepTooLarge, match="65 members") as refused:
        plan(planner, {"seed": list(range(65))})
    assert (refused.value.code, refused.value.param) == ("sweep_too_large", "sweep")


@pytest.mark.parametrize("sweep", [{}, {"seed": [1]}, {"halving": False}])
def test_one_member_is_no_sweep(planner: Planner, sweep: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="2 to 64") as refused:
        plan(planner, sweep)
    assert refused.value.param == "sweep"


@pytest.mark.parametrize(
    ("sweep", "param"),
    [
        ({"learning_rate": [0.1, 0.2, "fast"]}, "sweep.learning_rate.2"),
        ({"learning_rate": [0.1, 0]}, "sweep.learning_rate.1"),
        ({"num_virtual_tokens": [4, 513]}, "sweep.num_virtual_tokens.1"),
        ({"seed": [1, 2, 1]}, "sweep.seed"),
        ({"seed": []}, "sweep.seed"),
        ({"seed": ["auto"]}, "sweep.seed.0"),
        ({"batch_size": [4, 8]}, "sweep.batch_size"),
        ({"method": [{"type": "p_tuning"}, {"type": "nope"}]}, "sweep.method.1"),
        ({"method": [{"type": "p_tuning", "encoder": "gru"}]}, "sweep.method.0.encoder"),
    ],
)
def test_wrong_value_is_named(sweep: dict[str, Any], param: str) -> None:
    with pytest.raises(ValidationError) as refused:
        mood_request(sweep=sweep)
    assert from_pydantic(refused.value).param == param


@pytest.mark.parametrize(
    ("sweep", "more", "param"),
    [
        ({"template": ["<prompt:4>{text}", "<prompt:4>{other}"]}, {}, "sweep.template.1"),
        ({"num_virtual_tokens": [5, 4]}, {"template": "<prompt:5>{text}"}, "sweep.num_virtual_tokens.1"),
        ({"init": ["vocab", "zero"]}, {}, "sweep.init.1"),
        ({"init": ["vocab", "text"]}, {}, "sweep.init.1"),
        (
            {"method": [{"type": "prompt_tuning"}, {"type": "prefix_tuning"}]},
            {"template": "{text}<prompt:4>"},
            "sweep.method.1",
        ),
        (
            {"method": [{"type": "p_tuning"}, {"type": "spot", "init_prompt": "none@1"}]},
            {},
            "sweep.method.1.init_prompt",
        ),
        ({"seed": [1, 2]}, {"hyperparameters": {"seed": 3}}, "sweep.seed"),
        ({"method": [{"type": "p_tuning"}, {}]}, {"method": {"init": "random"}}, "sweep.method"),
        ({"template": ["a<prompt:4>{text}", "<prompt:4>{text}"]}, {"template": "<prompt:3>{text}"}, "sweep.template"),
        ({"seed": [1, 2]}, {"template": "{text}"}, "template"),
        ({"seed": [1, 2]}, {"verbalizer": {"good": [" x"]}}, "verbalizer"),
        ({"seed": [1, 2]}, {"publish": {"top_k": 3}}, "publish.top_k"),
    ],
)
def test_every_member_is_checked_and_the_value_to_blame_is_named(
    planner: Planner, sweep: dict[str, Any], more: dict[str, Any], param: str
) -> None:
    with pytest.raises((ChorusError, StoreError)) as refused:
        plan(planner, sweep, **more)
    error: Any = refused.value
    assert error.param == param


def test_searched_method_is_refused_in_a_sweep(planner: Planner) -> None:
    with pytest.raises(CapabilityMissing, match="a job of its own") as refused:
        plan(planner, {"method": [{"type": "p_tuning"}, {"type": "hard"}]})
    assert refused.value.param == "sweep.method.1"
    with pytest.raises(CapabilityMissing) as refused:
        plan(planner, {"seed": [1, 2]}, method={"type": "hard"})
    assert refused.value.param == "method"


def test_member_that_leaves_no_room_for_text_is_named(
    store: PromptStore, datasets: DatasetStore, backbone: Backbone
) -> None:
    sweep = {
        "seed": [1, 2],
        "template": ["<prompt:4>{text}", "word " * 2 * backbone.max_positions + "<prompt:4>{text}"],
    }
    with pytest.raises(ContextTooLong) as refused:
        plan(Planner(store, datasets, backbone), sweep)
    assert refused.value.param == "sweep.template.1"


def test_top_k_without_a_sweep_is_refused(planner: Planner) -> None:
    with pytest.raises(InvalidRequest, match="best of a sweep") as refused:
        planner.plan(mood_request(publish={"top_k": 2}))
    assert refused.value.param == "publish.top_k"


@pytest.mark.parametrize("top", [1, 9, True, "3"])
def test_top_k_is_a_number_that_an_ensemble_may_have(top: Any) -> None:
    with pytest.raises(ValidationError) as refused:
        mood_request(sweep={"seed": list(range(9))}, publish={"top_k": top})
    assert from_pydantic(refused.value).param == "publish.top_k"
