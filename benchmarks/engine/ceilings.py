"""What the machine can do at most: how fast it multiplies matrices of the model's own shapes, and how fast it reads.

The arithmetic ceiling of a workload is requests per second if nothing were ever computed but the products that its
needed tokens take, each at the fastest rate that any of three kernels reached here. Nothing can beat it in that dtype;
padding, attention's softmax, norms, sampling and every copy come on top.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from benchmarks.engine import wire
from benchmarks.engine.models import SHAPES, Shape
from benchmarks.engine.workload import Ask, Task, Workload

ROWS = (32, 64, 1024)  # tokens in one product: a decode step of 32 or 64 rows, a prefill
_READ_BYTES = 1 << 30  # beyond any cache
_TRIES = 5


class CeilingsPeer:
    """Measures like any other peer, so that ceilings are of the same minutes as the figures they bound."""

    def __init__(self, options: dict[str, Any]) -> None:
        torch.set_num_threads(options["threads"])
        self.shape = SHAPES[options["model"]]
        self._ones = torch.ones(_READ_BYTES // 8, dtype=torch.int64)

    @torch.inference_mode()
    def measure(self, turn: int = 0) -> dict[str, Any]:
        """`gemm`: {tokens: FLOP/s over a layer's products}; `read`: bytes/s."""
        return {
            "gemm": {str(rows): gemm_rate(self.shape, rows) for rows in ROWS},
            "read": self._read_rate(),
        }

    @torch.inference_mode()
    def read(self) -> dict[str, Any]:
        """`read` alone, a fifth of a second: to be asked right before and after what it bounds."""
        return {"read": self._read_rate()}

    def _read_rate(self) -> float:
        return _READ_BYTES / fastest(self._ones.sum)


def gemm_rate(shape: Shape, rows: int) -> float:
    """FLOP/s over the products of one layer with `rows` tokens, the fastest kernel for each product."""
    flops = seconds = 0.0
    for inputs, outputs in shape.gemms:
        x = torch.randn(rows, inputs).to(shape.torch_dtype)
        weight = torch.randn(outputs, inputs).to(shape.torch_dtype)
        flops += 2 * rows * inputs * outputs
        seconds += min(fastest(kernel) for kernel in kernels(x, weight))
    return flops / seconds


def kernels(x: Tensor, weight: Tensor) -> Iterable[Callable[[], Tensor]]:
    """x [M, K] times weight [N, K] transposed, three ways."""
    yield lambda: torch.nn.functional.linear(x, weight)
    turned = weight.t().contiguous()
    yield lambda: torch.mm(x, turned)
    if torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        packed = torch.ops.mkldnn._reorder_linear_weight(weight)
        yield lambda: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")


def fastest(run: Callable[[], object]) -> float:
    """Seconds of the fastest of a few timings, each of several calls."""
    run()
    began = time.perf_counter()
    run()
    calls = max(1, int(0.005 / (time.perf_counter() - began)))
    best = float("inf")
    for _ in range(_TRIES):
        began = time.perf_counter()
        for _ in range(calls):
            run()
        best = min(best, (time.perf_counter() - began) / calls)
    return best


def request_flops(shape: Shape, *, prompt: int, text: int, new_tokens: int, cached: bool = True) -> float:
    """Floating-point operations that one request cannot do without.

    Its text runs through the layers once, each new token but the last once more; logits are needed for each new token.
    `cached`: the prompt's keys and values are there already. Attention counts each token's real keys.
    """
    fed = text + new_tokens - 1 + (0 if cached else prompt)
    first = prompt if cached else 0
    keys = sum(range(first + 1, first + fed + 1))
    products = 2 * shape.layer_weights * fed + 2 * shape.head_weights * new_tokens
    return products + 4 * shape.layers * shape.heads * shape.head_width * keys


def mean_flops(shape: Shape, work: Workload, tasks: list[Task], asks: list[Ask]) -> float:
    """Mean over a round's requests."""
    new = work.new_tokens if work.kind == "generate" else 1
    sizes = [(tasks[ask.task].size, len(ask.ids)) for ask in asks]
    return sum(request_flops(shape, prompt=prompt, text=text, new_tokens=new) for prompt, text in sizes) / len(sizes)


def read_floor_s(shape: Shape, bytes_per_s: float) -> float:
    """Seconds that one decode step of one row takes at least: every weight is read once."""
    return (shape.layer_weights + shape.head_weights) * shape.torch_dtype.itemsize / bytes_per_s


if __name__ == "__main__":
    wire.serve(CeilingsPeer(wire.arguments()), {"versions": {"torch": torch.__version__}})
