"""Adapters that do not fit the backbone, and tasks of multitask prompts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import save

from app.backbone import Backbone
from app.errors import CapabilityMissing, InvalidPrompt, InvalidRequest, InvalidTemplate
from app.interchange.drafting import place_prompt
from app.interchange.peft_import import Adapter, to_prompt
from tests.architectures import build_backbone

P, H, L, G, D = 5, 64, 3, 2, 16  # the small Llama's


@pytest.fixture(scope="module")
def llama() -> Backbone:
    return build_backbone("llama")


def adapter(kind: str = "PROMPT_TUNING", *, task: str = "CAUSAL_LM", shape: Any = (P, H), **fields: Any) -> Adapter:
    config = {"peft_type": kind, "task_type": task, "num_virtual_tokens": P, **fields}
    return Adapter.read(config, save({"prompt_embeddings": torch.ones(shape)}))


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (lambda: adapter(token_dim=32), "`token_dim` is 32"),
        (lambda: adapter(shape=(P, 32)), r"is \[5, 32\]"),
        (lambda: adapter(shape=(P + 1, H)), r"is \[6, 64\]"),
        (lambda: adapter(shape=(P * H,)), r"is \[320\]"),
        (lambda: adapter("PREFIX_TUNING", shape=(P, 2 * L * G * D), num_layers=4), "`num_layers` is 4"),
        (lambda: adapter("PREFIX_TUNING", shape=(P, 2 * L * G * D), num_attention_heads=4), "`num_attention_heads`"),
        (lambda: adapter("PREFIX_TUNING", shape=(P, 2 * L * G * D), token_dim=64), "`token_dim` is 64"),
        (lambda: adapter("PREFIX_TUNING", shape=(P, 2 * L * H)), "here it is"),
    ],
)
def test_an_adapter_of_another_model_is_refused(llama: Backbone, made: Any, says: str) -> None:
    with pytest.raises(InvalidPrompt, match=says):
        to_prompt(made(), llama)


def test_an_adapter_of_another_family_is_refused(llama: Backbone) -> None:
    with pytest.raises(CapabilityMissing, match="SEQ_2_SEQ_LM"):
        to_prompt(adapter(task="SEQ_2_SEQ_LM", shape=(2 * P, H)), llama)


def test_keys_and_values_where_none_can_be_given_are_refused() -> None:
    mpt = build_backbone("mpt")  # runs on the reference runner
    assert mpt.kv_shape is None
    with pytest.raises(CapabilityMissing, match="keys and values"):
        to_prompt(adapter("PREFIX_TUNING", shape=(P, 384)), mpt)


def multitask(tasks: int, *, ranks: int = 2, rows: Any = None, **fields: Any) -> Adapter:
    generator = torch.Generator().manual_seed(1)
    tensors = {
        "prompt_embeddings": torch.randn(P, H, generator=generator),
        "prefix_task_cols": torch.randn(tasks, P, ranks, generator=generator),
        "prefix_task_rows": torch.randn(rows or (tasks, ranks, H), generator=generator),
    }
    config = {"peft_type": "MULTITASK_PROMPT_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": P, **fields}
    return Adapter.read(config, save(tensors))


def test_tasks_of_a_multitask_prompt_differ_and_the_only_one_needs_no_name(llama: Backbone) -> None:
    made = multitask(3)
    found = [to_prompt(made, llama, task_index=index) for index in range(3)]
    assert all(isinstance(one, torch.Tensor) and one.shape == (P, H) for one in found)
    assert not torch.equal(found[0], found[1])  # type: ignore[arg-type]
    assert not torch.equal(found[0], made.tensors["prompt_embeddings"])  # type: ignore[arg-type]
    assert to_prompt(multitask(1), llama) is not None


def test_a_task_that_is_not_there_is_refused(llama: Backbone) -> None:
    with pytest.raises(InvalidRequest, match="holds 3 tasks"):
        to_prompt(multitask(3), llama)
    with pytest.raises(InvalidRequest, match="0 to 2"):
        to_prompt(multitask(3), llama, task_index=3)
    with pytest.raises(InvalidRequest, match="only a multitask prompt"):
        to_prompt(adapter(), llama, task_index=0)


def test_factors_that_do_not_fit_are_refused(llama: Backbone) -> None:
    with pytest.raises(InvalidPrompt, match="no factors"):
        to_prompt(multitask(2, rows=(2, 3, H)), llama, task_index=0)
    with pytest.raises(InvalidPrompt, match="`num_tasks` is 5"):
        to_prompt(multitask(2, num_tasks=5), llama, task_index=0)


def test_a_prompt_stands_in_front_unless_the_template_says_where() -> None:
    vectors = torch.ones(P, H)
    assert place_prompt("{text} so", vectors).source == "<prompt:5>{text} so"
    assert place_prompt("{text}<prompt>", vectors).source == "{text}<prompt:5>"
    assert place_prompt("<prompt:2>{text}<prompt:3>", vectors).slots == (2, 3)
    with pytest.raises(InvalidTemplate):
        place_prompt("<prompt:4>{text}", vectors)
