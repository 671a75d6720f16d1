"""What `make bench-gpu` counts and prints, as far as that needs no GPU."""

from __future__ import annotations

import sys

import pytest
import torch

from app.backbone.decoder import Decoder
from benchmarks import gpu
from benchmarks.engine.ceilings import request_flops
from benchmarks.engine.models import Shape, make_model

SMALL = Shape("small", "qwen2", 64, 3, 4, 2, 96, 320, tied=True, dtype="float32")


def test_product_of_a_decoder_counts_what_its_shape_says() -> None:
    product = gpu.Product.of(Decoder(make_model(SMALL)))
    assert (product.layer_weights, product.head_weights) == (SMALL.layer_weights, SMALL.head_weights)
    assert product.kv_bytes == SMALL.kv_bytes_per_token
    assert list(product.gemms) == SMALL.gemms


def test_arithmetic_of_a_prefill_is_that_of_its_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "PREFILL", (2, 6))
    monkeypatch.setattr(gpu, "ROUNDS", 1)
    decoder = Decoder(make_model(SMALL))
    monkeypatch.setattr(gpu.PackedRunner, "prefill", lambda *_: None)
    found = gpu.prefill(decoder, gpu.Product.of(decoder), gpu.Clock(torch.device("cpu")), gemm=1.0)
    assert found["arithmetic"] == 2 * request_flops(SMALL, prompt=0, text=6, new_tokens=1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_bench_without_a_gpu_says_so_and_writes_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: object
) -> None:
    page = f"{tmp_path}/gpu.md"
    monkeypatch.setattr(sys, "argv", ["gpu", "--write", page])
    gpu.main()
    assert "no GPU here: not measured" in capsys.readouterr().out
    with pytest.raises(FileNotFoundError):
        open(page).close()


def test_page_shows_shares_of_what_the_machine_can_do() -> None:
    part = {
        "model": "m",
        "dtype": "bfloat16",
        "bounds": {"copy": 2e12, "gemm": 4e14},
        "decode": [{"rows": 1, "length": 128, "seconds": 1e-3, "weights": 6e-4, "all": 7e-4}],
        "prefill": {"seconds": 4e-3, "arithmetic": 3e-3},
        "contests": {20: {"chorus": 300.0, "generate": 100.0, "ratio": 3.1}},
    }
    page = gpu.render([part], "a GPU")
    assert "| 1 rows of 128 tokens | 1.00 ms | 0.60 ms | **60%** | 70% |" in page
    assert "**75%**" in page
    assert "| P = 20 | 300.0 | 100.0 | **3.10×** |" in page
