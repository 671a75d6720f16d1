"""What a submission refuses of a method, by an error that names the field."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from app.api.errors import from_pydantic
from app.backbone import Backbone
from app.errors import CapabilityMissing, ChorusError, InvalidPrompt, InvalidTemplate
from app.training.datasets import DatasetStore
from app.training.job import Job
from app.training.planning import Planner
from app.training.sources import RegistrySources
from prompt_store import BackboneRef, PromptMeta, PromptStore, StoreError, TaskSpec
from tests.training_data import short_request


@pytest.fixture
def with_backbone(store: PromptStore, datasets: DatasetStore, backbone: Backbone) -> Planner:
    return Planner(store, datasets, backbone)


def publish(store: PromptStore, task: str, fingerprint: str, tensors: dict[str, Any], shape: int = 2) -> None:
    meta = PromptMeta(
        task=task,
        template="<prompt:2>{text}" if tensors else "{text}",
        verbalizer={"a": (" a",), "b": (" b",)},
        verbalizer_ids={"a": ((5,),), "b": ((6,),)},
        bos="after_prompt",
        method={"type": "prompt_tuning"},
        backbone=BackboneRef(name="other", fingerprint=fingerprint, hidden_size=shape),
        num_virtual_tokens=2 if tensors else 0,
        tensors={name: array.shape for name, array in tensors.items()} if "prefix" in tensors else None,
    )
    spec = TaskSpec(fields=("text",), labels=("a", "b"))
    store.publish(task=task, meta=meta, tensors=tensors, publication=task, alias="prod", state="published", spec=spec)


@pytest.mark.parametrize(
    ("method", "param", "says"),
    [
        ({"type": "nope"}, "method", "hard"),
        ({"type": ["p_tuning"]}, "method", "p_tuning"),
        ({"type": "p_tuning", "encoder": "gru"}, "method.encoder", "mlp"),
        ({"type": "p_tuning", "init": "vocab"}, "method.init", "unknown field"),
        ({"type": "prefix_tuning", "init": "text"}, "method", "init_text"),
        ({"type": "residual", "bottleneck": 0}, "method.bottleneck", "greater"),
        ({"type": "multitask", "source": []}, "method.source", "at least 1"),
        ({"type": "multitask", "source": ["a@1"], "init": "random"}, "method", "source"),
        ({"init": "prompt"}, "method", "init_prompt"),
        ({"type": "hard", "candidates": [["one"]]}, "method.candidates.0.1", "required"),
    ],
)
def test_option_that_is_wrong_is_named(method: dict[str, Any], param: str, says: str) -> None:
    with pytest.raises(ValidationError) as refused:
        short_request(method=method)
    error = from_pydantic(refused.value)
    assert error.param == param
    assert says in error.message


@pytest.mark.parametrize("template", ["{text}<prompt:4>", "Read: <prompt:4>{text}", "<prompt:2>{text}<prompt:2>"])
def test_prefix_tuning_wants_one_slot_that_leads(planner: Planner, template: str) -> None:
    with pytest.raises(InvalidTemplate, match="in front of the text") as refused:
        planner.plan(short_request(template=template, method={"type": "prefix_tuning"}))
    assert refused.value.param == "template"


def test_prefix_tuning_of_a_backbone_that_takes_no_keys_is_refused(
    store: PromptStore, datasets: DatasetStore, backbone: Backbone
) -> None:
    backbone = replace(backbone, probed=replace(backbone.probed, kv_shape=None))
    with pytest.raises(CapabilityMissing) as refused:
        Planner(store, datasets, backbone).plan(short_request(method={"type": "prefix_tuning"}))
    assert refused.value.param == "method.type"


FROM = [
    ({"type": "prompt_tuning", "init": "prompt"}, "init_prompt", "method.init_prompt"),
    ({"type": "residual", "init": "prompt"}, "init_prompt", "method.init_prompt"),
    ({"type": "spot"}, "init_prompt", "method.init_prompt"),
    ({"type": "multitask"}, "source", "method.source.0"),
]


def naming(method: dict[str, Any], field: str, reference: str) -> Any:
    return short_request(method=method | {field: [reference] if field == "source" else reference})


@pytest.mark.parametrize(("method", "field", "param"), FROM)
@pytest.mark.parametrize(
    ("reference", "code"),
    [
        ("nobody@1", "task_not_found"),
        ("foreign@9", "version_not_found"),
        ("foreign@x", "invalid_reference"),
        ("Not A Name", "invalid_name"),
        ("foreign@1", "invalid_prompt"),
        ("words@1", "invalid_prompt"),
        ("keys@1", "invalid_prompt"),
    ],
)
def test_source_that_cannot_be_started_from_is_refused(
    with_backbone: Planner,
    store: PromptStore,
    backbone: Backbone,
    method: dict[str, Any],
    field: str,
    param: str,
    reference: str,
    code: str,
) -> None:
    publish(store, "foreign", "f" * 64, {"prompt": np.ones((2, 2), np.float32)})
    publish(store, "words", backbone.fingerprint, {}, backbone.hidden_size)
    assert backbone.kv_shape is not None
    keys = np.ones(backbone.kv_shape.prefix(2), np.float32)
    publish(store, "keys", backbone.fingerprint, {"prefix": keys}, backbone.hidden_size)
    with pytest.raises((ChorusError, StoreError)) as refused:
        with_backbone.plan(naming(method, field, reference))
    assert (refused.value.code, refused.value.param) == (code, param)


def test_trainer_refuses_another_backbones_vectors_too(store: PromptStore, backbone: Backbone) -> None:
    publish(store, "foreign", "f" * 64, {"prompt": np.ones((2, 2), np.float32)})
    sources = RegistrySources(store, backbone, "mood")
    with pytest.raises(InvalidPrompt, match="belongs to the backbone"):
        sources.vectors("foreign@1")
    assert list(sources.others()) == []


def test_others_are_the_prod_versions_of_other_tasks(
    attempt: Callable[..., Job], store: PromptStore, backbone: Backbone
) -> None:
    for task in ("first", "second", "second"):
        attempt(task=task, publish={"when": "always" if task == "first" else "never"})
    store.move_alias("second", "prod", 2, expected=None)
    attempt(task="third", publish={"when": "never"})
    attempt(task="fourth", method={"type": "hard", "max_evaluations": 1}, hyperparameters={})
    found = dict(RegistrySources(store, backbone, "mood").others())
    assert sorted(found) == ["first@1", "second@2"]
    assert found["first@1"].shape == (4, backbone.hidden_size)
    assert sorted(name for name, _ in RegistrySources(store, backbone, "first").others()) == ["second@2"]


def test_spot_without_other_tasks_fails_with_the_field(attempt: Callable[..., Job]) -> None:
    with pytest.raises(ChorusError) as refused:
        attempt(method={"type": "spot"})
    assert (refused.value.code, refused.value.param) == ("not_found", "method.init_prompt")
