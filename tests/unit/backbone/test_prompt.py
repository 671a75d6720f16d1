from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from app.backbone import Backbone, load_prompt
from app.backbone.kv import PrefixKV
from app.errors import InvalidPrompt
from prompt_store.models import BackboneRef, PromptMeta, Version


def make_version(llama: Backbone, **changes: Any) -> Version:
    meta: dict[str, Any] = {
        "task": "t",
        "template": "<prompt:4>{text}",
        "bos": "after_prompt",
        "method": {"type": "prompt_tuning"},
        "backbone": llama.ref,
        "num_virtual_tokens": 4,
        **changes,
    }
    return Version(
        task="t", task_id="i", number=2, digest="0" * 64, size_bytes=1, state="published", meta=PromptMeta(**meta),
        publication="p", created_at=0.0,
    )  # fmt: skip


def good(llama: Backbone) -> np.ndarray:
    return np.full((4, llama.hidden_size), 0.1, np.float32)


def test_load_of_a_fitting_prompt_keeps_its_vectors(llama: Backbone) -> None:
    prompt = load_prompt(make_version(llama), {"prompt": good(llama)}, llama)
    assert prompt.num_virtual_tokens == 4
    assert prompt.verbalizer is None


def test_load_of_a_hard_prompt_needs_no_tensor(llama: Backbone) -> None:
    version = make_version(llama, template="{text} so", num_virtual_tokens=0)
    assert load_prompt(version, {}, llama).vectors is None


def test_load_of_another_backbones_prompt_is_refused(llama: Backbone) -> None:
    other = BackboneRef(name="other", fingerprint="f" * 64, hidden_size=llama.hidden_size)
    with pytest.raises(InvalidPrompt, match="belongs to the backbone other"):
        load_prompt(make_version(llama, backbone=other), {"prompt": good(llama)}, llama)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda a: {},
        lambda a: {"prompt": a, "extra": a},
        lambda a: {"prompt": a.astype(np.float16)},
        lambda a: {"prompt": a[:3]},
        lambda a: {"prompt": a[:, :-1]},
        lambda a: {"prompt": np.where(a > 0, np.nan, a).astype(np.float32)},
        lambda a: {"prompt": np.where(a > 0, np.inf, a).astype(np.float32)},
        lambda a: {"prompt": a * 1e9},
    ],
)
def test_load_of_bad_tensors_is_refused(llama: Backbone, spoil: Any) -> None:
    with pytest.raises(InvalidPrompt):
        load_prompt(make_version(llama), spoil(good(llama)), llama)


@pytest.mark.parametrize("ids", [{"a": ((1,),), "b": ((10**9,),)}, {"a": ((),), "b": ((2,),)}, {"a": ((1,),)}])
def test_load_of_a_bad_verbalizer_is_refused(llama: Backbone, ids: Any) -> None:
    version = make_version(llama, verbalizer={"a": (" a",), "b": (" b",)}, verbalizer_ids=ids)
    with pytest.raises(InvalidPrompt, match="verbalizer"):
        load_prompt(version, {"prompt": good(llama)}, llama)


def prefix(llama: Backbone, size: int = 4) -> np.ndarray:
    assert llama.kv_shape is not None
    return np.full(llama.kv_shape.prefix(size), 0.1, np.float32)


def test_load_of_given_keys_and_values_keeps_them(llama: Backbone) -> None:
    shapes = {"prefix": prefix(llama).shape}
    prompt = load_prompt(make_version(llama, tensors=shapes), {"prefix": prefix(llama)}, llama)
    assert isinstance(prompt.learned, PrefixKV)
    assert (prompt.learned.length, prompt.num_virtual_tokens, prompt.vectors) == (4, 4, None)


@pytest.mark.parametrize(
    ("template", "tensors", "wanted"),
    [
        ("{text}<prompt:4>", lambda b: {"prefix": prefix(b)}, "one slot that comes first"),
        ("<prompt:2>{text}<prompt:2>", lambda b: {"prefix": prefix(b)}, "one slot that comes first"),
        ("<prompt:4>{text}", lambda b: {"prefix": prefix(b, 5)}, "wanted {'prefix'"),
        ("<prompt:4>{text}", lambda b: {"prefix": prefix(b)[:, :-1]}, "wanted {'prefix'"),
        ("<prompt:4>{text}", lambda b: {"prefix": np.full_like(prefix(b), np.nan)}, "not finite"),
        ("<prompt:4>{text}", lambda b: {"prompt": good(b), "decoder_prompt": good(b)}, "encoder-decoder"),
    ],
)
def test_load_of_misplaced_keys_and_values_is_refused(
    llama: Backbone, template: str, tensors: Any, wanted: str
) -> None:
    arrays = tensors(llama)
    shapes = {name: array.shape for name, array in arrays.items()}
    with pytest.raises(InvalidPrompt, match=wanted):
        load_prompt(make_version(llama, template=template, tensors=shapes), arrays, llama)
