"""What only a GPU shows of the engine: mixed batches equal each row alone there, and a step waits once."""

from __future__ import annotations

import time
import warnings

import pytest
import torch

from app.backbone import Backbone, Row
from app.backbone.backbone import wrap_model
from app.engine import Engine, EngineConfig, Request, Sampling
from tests.architectures import build_backbone, build_model
from tests.parity.test_mixed_batch import requests_for, run, tokens_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
]
TOLERANCE = 1e-3


def on_gpu(name: str) -> Backbone:
    model = build_model(name).to("cuda")
    return wrap_model(model, build_backbone(name).tokenizer, name=name, identity=f"{name:0>64}")


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2"])
def test_mixed_batch_on_a_gpu_equals_each_row_alone(name: str) -> None:
    backbone = on_gpu(name)
    assert backbone.runner_name == ("fast" if name == "gpt2" else "packed")
    made = requests_for(backbone)
    mixed = run(Engine(backbone, EngineConfig(max_rows=16, max_context=128, max_padding=0.9)), made)
    alone = Engine(backbone, EngineConfig(max_rows=1, max_context=128, prompt_cache_bytes=1))
    for prompt, request in made:
        wanted = run(alone, [(prompt, request)])[request.id]
        assert tokens_of(mixed[request.id]) == tokens_of(wanted)
        if request.rows[0].verbalizer:
            assert mixed[request.id][-1].scores == pytest.approx(wanted[-1].scores, abs=TOLERANCE)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_decode_step_of_the_engine_on_a_gpu_waits_once(temperature: float) -> None:
    engine = Engine(on_gpu("llama"), EngineConfig(max_rows=4, max_context=128))
    engine._ends = frozenset()  # no row comes or goes while we look
    for i in range(3):
        sampling = Sampling(40, temperature=temperature, top_k=50, seed=i)
        engine.submit(Request.single(str(i), Row((5, 6, 7 + i)), None, time.monotonic() + 600, sampling))
    for _ in range(4):
        engine.step()
    for _ in range(5):
        assert waits_of_a_step(engine) == 1
    assert engine.stats().running == 3


def waits_of_a_step(engine: Engine) -> int:
    """How often torch says that it waited for the GPU."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            engine.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(each.message) for each in found)
