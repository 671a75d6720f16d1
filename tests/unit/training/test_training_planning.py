"""A request becomes a plan, or an error before anything is queued."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from app.backbone import Backbone
from app.errors import ContextTooLong, DatasetNotFound, InvalidDataset, InvalidTemplate, InvalidVerbalizer
from app.training.datasets import DatasetStore
from app.training.methods import METHODS
from app.training.plan import Plan
from app.training.planning import Planner
from app.training.requests import TrainRequest
from prompt_store import BackboneRef, PromptMeta, PromptStore, TaskSpec
from prompt_store.models import HAND_WRITTEN
from tests.training_data import mood_rows


def request(rows: list[dict[str, Any]] | None = None, **more: Any) -> TrainRequest:
    return TrainRequest.model_validate({"task": "mood", "training_data": {"inline": rows or mood_rows()}} | more)


def plan(planner: Planner, rows: list[dict[str, Any]] | None = None, **more: Any) -> Plan:
    return planner.plan(request(rows, **more))[0]


def publish(
    store: PromptStore,
    *,
    template: str,
    words: dict[str, tuple[str, ...]],
    size: int,
    method: str = "prompt_tuning",
) -> None:
    meta = PromptMeta(
        task="mood",
        template=template,
        verbalizer=words,
        verbalizer_ids=dict.fromkeys(words, ((1,),)),
        bos="none",
        method={"type": method},
        backbone=BackboneRef(name="m", fingerprint="f" * 64, hidden_size=2),
        num_virtual_tokens=size,
    )
    spec = TaskSpec(fields=("text",), labels=tuple(words))
    tensors = {"prompt": np.ones((size, 2), np.float32)} if size else {}
    store.publish(task="mood", meta=meta, tensors=tensors, publication=f"p{size}", spec=spec)


def test_new_task_is_made_from_its_rows(planner: Planner) -> None:
    made = plan(planner)
    assert made.spec == TaskSpec(fields=("text",), labels=("bad", "good"), metric="accuracy")
    assert made.template == "<prompt:20>{text}\nAnswer:"
    assert made.verbalizer == {"bad": (" bad",), "good": (" good",)}


def test_several_fields_are_named_in_the_template(planner: Planner) -> None:
    rows = [{"premise": "a", "the_hypothesis": "b", "label": label} for label in "xyxy"]
    assert plan(planner, rows).template == "<prompt:20>Premise: {premise}\nThe hypothesis: {the_hypothesis}\nAnswer:"


@pytest.mark.parametrize(("answer", "metric"), [("yes", "exact_match"), ("a longer answer of words", "rouge_l")])
def test_free_text_is_judged_by_its_length(planner: Planner, answer: str, metric: str) -> None:
    made = plan(planner, [{"input": f"q{n}", "output": answer} for n in range(4)])
    assert (made.spec.metric, made.spec.labels, made.verbalizer) == (metric, None, None)


def test_completion_follows_its_prompt_directly(planner: Planner) -> None:
    assert plan(planner, [{"prompt": f"q{n}", "completion": "a"} for n in range(4)]).template == "<prompt:20>{prompt}"


@pytest.mark.parametrize(
    ("template", "size", "expected"),
    [
        ("{text}<prompt>", "auto", "{text}<prompt:20>"),
        ("<prompt:3>{text}<prompt>", "auto", "<prompt:3>{text}<prompt:20>"),
        ("<prompt>{text}", 7, "<prompt:7>{text}"),
        ("<prompt:3>{text}<prompt:2>", 5, "<prompt:3>{text}<prompt:2>"),
        (None, 9, "<prompt:9>{text}\nAnswer:"),
    ],
)
def test_slots_get_their_numbers(planner: Planner, template: str | None, size: int | str, expected: str) -> None:
    assert plan(planner, template=template, hyperparameters={"num_virtual_tokens": size}).template == expected


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{text}", "no slot to learn"),
        ("<prompt:5>{text} {id}", "has the fields"),
        ("<prompt:5>text", "at least one"),
        ("<prompt:5>{text", "brace"),
        ("<prompt:0>{text}", "at least one vector"),
    ],
)
def test_bad_template_is_refused(planner: Planner, template: str, message: str) -> None:
    with pytest.raises(InvalidTemplate, match=message):
        plan(planner, template=template)


def test_slots_that_disagree_with_the_number_asked_for_are_refused(planner: Planner) -> None:
    with pytest.raises(InvalidTemplate, match="num_virtual_tokens is 20"):
        plan(planner, template="<prompt:5>{text}<prompt:4>", hyperparameters={"num_virtual_tokens": 20})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"good": [" good"]}, "exactly the labels"),
        ({"good": [" good"], "bad": [" bad"], "other": [" x"]}, "exactly the labels"),
        ({"good": [" same"], "bad": [" same"]}, "stands for"),
        ({"good": [" "], "bad": [" bad"]}, "empty or too long"),
    ],
)
def test_bad_verbalizer_is_refused(planner: Planner, words: dict[str, list[str]], message: str) -> None:
    with pytest.raises(InvalidVerbalizer, match=message):
        plan(planner, verbalizer=words)


def test_verbalizer_of_a_free_text_task_is_refused(planner: Planner) -> None:
    with pytest.raises(InvalidVerbalizer, match="no verbalizer"):
        plan(planner, [{"text": "a", "output": "b"}] * 4, verbalizer={"a": ["b"]})


def test_words_with_equal_tokens_are_refused_where_the_backbone_is_at_hand(
    store: PromptStore, datasets: DatasetStore, backbone: Backbone
) -> None:
    with pytest.raises(InvalidVerbalizer):
        plan(Planner(store, datasets, backbone), verbalizer={"good": [" ok"], "bad": [" ok "[:3]]})


def test_template_longer_than_the_context_is_refused_where_the_backbone_is_at_hand(
    store: PromptStore, datasets: DatasetStore, backbone: Backbone
) -> None:
    with pytest.raises(ContextTooLong, match="the template alone"):
        plan(Planner(store, datasets, backbone), template="<prompt:500>" + "word " * 600 + "{text}")


def test_existing_task_keeps_its_wording(planner: Planner, store: PromptStore) -> None:
    words = {"good": (" great",), "bad": (" awful",)}
    publish(store, template="Review: {text}<prompt:4>", words=words, size=4)
    made = plan(planner)
    assert (made.template, made.verbalizer) == ("Review: {text}<prompt:4>", words)
    assert plan(planner, hyperparameters={"num_virtual_tokens": 6}).template == "Review: {text}<prompt:6>"


def test_existing_task_with_a_hand_written_prompt_gets_a_slot_before_its_words(
    planner: Planner, store: PromptStore
) -> None:
    words = {"good": (" great",), "bad": (" awful",)}
    publish(store, template="Review: {text}", words=words, size=0, method=HAND_WRITTEN)
    made = plan(planner)
    assert (made.template, made.verbalizer) == ("<prompt:20>Review: {text}", words)
    assert plan(planner, hyperparameters={"num_virtual_tokens": 6}).template == "<prompt:6>Review: {text}"
    assert plan(planner, method={"type": "hard"}).template == "Review: {text}"


def test_existing_task_of_searched_words_gets_a_template_of_its_own(planner: Planner, store: PromptStore) -> None:
    publish(
        store, template="qx Review: {text} zz", words={"good": (" great",), "bad": (" awful",)}, size=0, method="hard"
    )
    assert plan(planner).template == "<prompt:20>{text}\nAnswer:"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "x", "label": "ugly"}, "'ugly' is not one of the task's: `bad`, `good`"),
        ({"body": "x", "label": "good"}, "field `text` is missing"),
        ({"text": "x", "id": "1", "label": "good"}, "no field `id`"),
        ({"text": "x", "output": "good"}, "this task has labels"),
    ],
)
def test_rows_that_are_not_the_tasks_are_refused(
    planner: Planner, store: PromptStore, row: dict[str, str], message: str
) -> None:
    store.put_task("mood", TaskSpec(fields=("text",), labels=("bad", "good")))
    rows = [row, *([row | {"label": "bad"}] if "label" in row else [row]), row, row]
    with pytest.raises(InvalidDataset, match=re.escape(message)) as caught:
        plan(planner, rows)
    assert caught.value.row == 1


def test_validation_label_that_training_lacks_is_refused(planner: Planner) -> None:
    dev = [{"text": "x", "label": label} for label in ("good", "bad", "other", "good")]
    with pytest.raises(InvalidDataset, match="'other'") as caught:
        plan(planner, validation_data={"inline": dev})
    assert caught.value.row == 3


def test_what_is_odd_and_allowed_is_warned_of(planner: Planner) -> None:
    rows = [*mood_rows(8), {"text": "same", "label": "good"}, {"text": "same", "label": "bad"}]
    warnings = plan(planner, rows, validation_data={"inline": rows[:4]}).warnings
    assert [warning.split(";")[0] for warning in warnings] == [
        "only 10 training rows",
        "1 training rows repeat the input of an earlier one",
        "1 inputs have more than one label",
        "4 validation rows are training rows too",
    ]


def test_dataset_is_pinned_by_digest(planner: Planner, datasets: DatasetStore) -> None:
    data = b"text,label\na,x\nb,y\nc,x\nd,y\n"
    digest = datasets.put("set", data).digest
    source = {"training_data": {"dataset": "set"}}
    made = plan(planner, **source)
    datasets.put("set", data.replace(b"d,y", b"e,y"))
    assert made.training.digest == digest
    assert datasets.read(made.training).examples[3].fields == {"text": "d"}
    assert plan(planner, **source).training.digest != digest


def test_unknown_dataset_is_not_found(planner: Planner) -> None:
    with pytest.raises(DatasetNotFound):
        plan(planner, training_data={"dataset": "none"})


def test_damaged_file_is_refused(planner: Planner, datasets: DatasetStore, tmp_path: Path) -> None:
    pinned = plan(planner).training
    path = tmp_path / "datasets" / f"{pinned.digest}.rows"
    path.write_bytes(path.read_bytes().replace(b"good", b"evil"))
    with pytest.raises(InvalidDataset, match="damaged"):
        datasets.read(pinned)
    path.unlink()
    with pytest.raises(InvalidDataset, match="missing"):
        datasets.read(pinned)


@pytest.mark.parametrize(
    "wrong",
    [
        {"task": "Up/../down"},
        {"extra": 1},
        {"training_data": {}},
        {"training_data": {"inline": [], "dataset": "x"}},
        {"training_data": {"dataset": "../x"}},
        {"validation_data": {"split": 0.9}},
        {"validation_data": {"split": 0.1, "dataset": "x"}},
        {"method": {"type": "lora"}},
        {"method": {"type": "prompt_tuning", "init": "text"}},
        {"method": {"type": "prompt_tuning", "init_text": "x"}},
        {"method": {"type": "prompt_tuning", "width": 3}},
        {"hyperparameters": {"batch_size": 0}},
        {"hyperparameters": {"batch_size": 2.5}},
        {"hyperparameters": {"batch_size": "16"}},
        {"hyperparameters": {"batch_size": True}},
        {"hyperparameters": {"learning_rate": float("nan")}},
        {"hyperparameters": {"learning_rate": -1}},
        {"hyperparameters": {"n_epochs": "many"}},
        {"hyperparameters": {"seed": 2**32}},
        {"publish": {"when": "sometimes"}},
        {"publish": {"alias": "Prod!"}},
        {"metadata": {"a": "b" * 513}},
        {"metadata": {str(n): "" for n in range(17)}},
    ],
)
def test_request_outside_the_contract_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        request(**wrong)


@pytest.mark.parametrize("kind", METHODS)
def test_request_may_name_any_registered_method(kind: str) -> None:
    assert isinstance(request(method={"type": kind}).method, METHODS[kind].config)


def test_request_without_a_type_means_prompt_tuning() -> None:
    assert request(method={"init": "random"}).method.type == request().method.type == "prompt_tuning"


@pytest.mark.parametrize(("common", "warned"), [(39, False), (40, True)])
def test_a_label_ten_times_as_common_as_another_is_warned_of(planner: Planner, common: int, warned: bool) -> None:
    rows = [{"text": f"common {number}", "label": "good"} for number in range(common)]
    rows += [{"text": f"rare {number}", "label": "bad"} for number in range(4)]
    warnings = plan(planner, rows).warnings
    assert any(f"4 rows have the label `bad` and {common} `good`" in warning for warning in warnings) is warned
