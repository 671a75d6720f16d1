from __future__ import annotations

import pytest

from benchmarks.engine.ceilings import mean_flops, read_floor_s, request_flops
from benchmarks.engine.models import SHAPES, Shape, make_model
from benchmarks.engine.workload import Workload, make_asks, make_tasks

SMALL = Shape("small", "llama", 16, 2, 2, 1, 24, 32, tied=False, dtype="float32")


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_weights_when_counted_are_the_models_own(kind: str) -> None:
    shape = Shape("small", kind, 16, 2, 2, 1, 24, 32, tied=False, dtype="float32")
    model = make_model(shape)
    matrices = sum(p.numel() for name, p in model.named_parameters() if p.dim() == 2 and "embed" not in name)
    assert shape.layer_weights + shape.head_weights == matrices


def test_flops_when_one_token_is_scored_are_two_per_weight_and_its_attention() -> None:
    flops = request_flops(SMALL, prompt=0, text=1, new_tokens=1)
    assert flops == 2 * (SMALL.layer_weights + SMALL.head_weights) + 4 * SMALL.layers * SMALL.hidden


def test_flops_when_prompt_is_cached_leave_out_its_tokens_but_not_its_keys() -> None:
    cached = request_flops(SMALL, prompt=10, text=5, new_tokens=1)
    computed = request_flops(SMALL, prompt=10, text=5, new_tokens=1, cached=False)
    without = request_flops(SMALL, prompt=0, text=5, new_tokens=1)
    assert without < cached < computed
    assert cached - without == 4 * SMALL.layers * SMALL.hidden * 10 * 5
    assert computed == request_flops(SMALL, prompt=0, text=15, new_tokens=1)


def test_flops_when_generating_feed_each_new_token_but_the_last() -> None:
    more = request_flops(SMALL, prompt=0, text=5, new_tokens=3) - request_flops(SMALL, prompt=0, text=5, new_tokens=1)
    keys = 6 + 7
    assert more == 4 * (SMALL.layer_weights + SMALL.head_weights) + 4 * SMALL.layers * SMALL.hidden * keys


def test_mean_flops_when_labels_are_scored_take_one_position_of_logits() -> None:
    work = Workload(kind="labels", prompt=(3, 3), text=(4, 4))
    tasks = make_tasks(work, hidden=16, vocabulary=32)
    asks = make_asks(work, tasks, vocabulary=32, turn=0, count=3)
    assert mean_flops(SMALL, work, tasks, asks) == request_flops(SMALL, prompt=3, text=4, new_tokens=1)


def test_read_floor_when_dtype_is_bfloat16_counts_two_bytes_a_weight() -> None:
    shape = SHAPES["0.5b"]
    assert read_floor_s(shape, 1e9) == pytest.approx(2 * (shape.layer_weights + shape.head_weights) / 1e9)
    assert shape.layer_weights + shape.head_weights == pytest.approx(494e6, rel=0.01)
