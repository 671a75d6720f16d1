"""The compiled steps are held to the plain ones: same numbers for every layout of rows."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from app.backbone.decoder_steps import DecoderSteps, PackedRows, Span, TorchSteps
from app.backbone.native.build import load
from app.backbone.native.steps import ROW_INFO, NativeSteps
from app.backbone.slot_memory import Heads, SlotMemory

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 4e-2}
PLACES = 80
needs_compiler = pytest.mark.skipif(load(torch.float32) is None, reason="no C compiler on this machine")


def native(dtype: torch.dtype) -> NativeSteps:
    library = load(dtype)
    assert library is not None
    return NativeSteps(library)


def make_heads(queries: int, groups: int, width: int) -> Heads:
    angle = torch.arange(PLACES)[:, None] / 100.0 ** (torch.arange(width // 2) / width)
    return Heads(queries, groups, width, width**-0.5, angle.cos().contiguous(), angle.sin().contiguous(), 1e-6)


def make_memory(heads: Heads, dtype: torch.dtype, slots: int) -> SlotMemory:
    return SlotMemory(heads, layers=2, slots=slots, places=PLACES, dtype=dtype, device=torch.device("cpu"))


def make_rows(shapes: list[tuple[int, int, tuple[int, ...]]], slot_of: list[int]) -> PackedRows:
    """Rows of (cached places, new tokens, lengths of branches)."""
    places, seen, spans = [], [], []
    for (cached, new, branches), slot in zip(shapes, slot_of, strict=True):
        first, total = len(places), cached + new
        places += [(p, slot, p) for p in range(cached, total)]
        seen += [(p + 1, 0, 0) for p in range(cached, total)]
        at = total
        for length in branches:
            places += [(total + i, slot, at + i) for i in range(length)]
            seen += [(total, at, at + i + 1) for i in range(length)]
            at += length
        spans.append(Span(first, len(places) - first, slot))
    info = np.zeros(len(spans), ROW_INFO)
    info["first"], info["count"] = [s.first for s in spans], [s.count for s in spans]
    info["slot"] = slot_of
    return PackedRows(torch.tensor(places), torch.tensor(seen), spans, info)


def fill(memory: SlotMemory, generator: torch.Generator) -> None:
    for part in (memory.keys, memory.values):
        part.copy_(torch.randn(part.shape, generator=generator))


def random_shapes(rng: random.Random, rows: int) -> list[tuple[int, int, tuple[int, ...]]]:
    return [
        (rng.randint(0, 30), rng.randint(1, 25), tuple(rng.randint(1, 4) for _ in range(rng.choice((0, 0, 3)))))
        for _ in range(rows)
    ]


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("queries", "groups", "width"), [(6, 6, 64), (14, 2, 64), (4, 2, 16), (3, 1, 80), (40, 2, 128)]
)
def test_native_attention_over_rows_of_any_lengths_equals_plain_torch(
    queries: int, groups: int, width: int, dtype: torch.dtype
) -> None:
    heads, rng, generator = make_heads(queries, groups, width), random.Random(width), torch.Generator().manual_seed(3)
    for trial in range(4):
        shapes = random_shapes(rng, rows=1 + 3 * trial)
        rows = make_rows(shapes, rng.sample(range(12), len(shapes)))
        memory = make_memory(heads, dtype, slots=12)
        fill(memory, generator)
        qkv = torch.randn(len(rows.places), (queries + 2 * groups) * width, generator=generator).to(dtype)
        got = native(dtype).attend(qkv, rows, memory, 1)
        wanted = TorchSteps().attend(qkv, rows, memory, 1)
        torch.testing.assert_close(got, wanted, atol=TOLERANCE[dtype], rtol=0)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_native_attention_over_places_in_a_base_equals_the_same_places_in_the_slot(dtype: torch.dtype) -> None:
    heads, generator = make_heads(4, 2, 32), torch.Generator().manual_seed(5)
    memory, rows = make_memory(heads, dtype, slots=3), make_rows([(20, 7, (2, 1)), (9, 1, ())], [2, 0])
    fill(memory, generator)
    qkv = torch.randn(len(rows.places), 8 * 32, generator=generator).to(dtype)
    wanted = native(dtype).attend(qkv, rows, memory, 1)
    base = memory.read(2, 20)
    memory.keys[:, 2, :, :20] = torch.nan  # nobody may look there
    memory.values[:, 2, :, :20] = torch.nan
    row = rows.info[0:1]
    row["base"], row["base_stride"] = 20, base.data.stride(2)
    row["base_keys"], row["base_values"] = base.data[0].data_ptr(), base.data[1].data_ptr()
    row["layer_bytes"] = base.data.stride(1) * base.data.element_size()
    got = native(dtype).attend(qkv, rows, memory, 1)
    torch.testing.assert_close(got, wanted, atol=TOLERANCE[dtype], rtol=0)


@pytest.mark.parametrize("steps", [TorchSteps(), pytest.param(None, marks=needs_compiler)], ids=["torch", "native"])
def test_attention_of_a_row_never_reads_beyond_what_it_sees(steps: DecoderSteps | None) -> None:
    heads, generator = make_heads(4, 4, 16), torch.Generator().manual_seed(6)
    memory, rows = make_memory(heads, torch.float32, slots=2), make_rows([(5, 3, ()), (0, 4, ())], [0, 1])
    fill(memory, generator)
    qkv = torch.randn(7, 12 * 16, generator=generator)
    steps = steps or native(torch.float32)
    before = steps.attend(qkv, rows, memory, 0)
    memory.keys[:, 0, :, 8:], memory.values[:, 0, :, 8:] = 1e4, 1e4
    memory.keys[:, 1, :, 4:], memory.values[:, 1, :, 4:] = -1e4, 1e4
    assert torch.equal(steps.attend(qkv, rows, memory, 0), before)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("normed", [False, True])
def test_native_placing_equals_plain_torch(dtype: torch.dtype, normed: bool) -> None:
    heads, generator = make_heads(4, 2, 32), torch.Generator().manual_seed(7)
    norms = (torch.rand(32, generator=generator), torch.rand(32, generator=generator)) if normed else (None, None)
    rows = make_rows([(3, 9, (2,)), (0, 1, ())], [1, 0])
    qkv = torch.randn(len(rows.places), 8 * 32, generator=generator).to(dtype)
    outcomes = []
    for steps in (native(dtype), TorchSteps()):
        memory, own = make_memory(heads, dtype, slots=2), qkv.clone()
        steps.place(own, rows, norms, memory, 1)
        outcomes.append((own[:, : 4 * 32], memory.keys, memory.values))
    for got, wanted in zip(*outcomes, strict=True):
        torch.testing.assert_close(got, wanted, atol=TOLERANCE[dtype], rtol=0)


@pytest.mark.parametrize("steps", [TorchSteps(), pytest.param(None, marks=needs_compiler)], ids=["torch", "native"])
def test_placing_without_queries_writes_the_same_keys_and_values(steps: DecoderSteps | None) -> None:
    heads, generator = make_heads(4, 2, 32), torch.Generator().manual_seed(11)
    norms = (torch.rand(32, generator=generator), torch.rand(32, generator=generator))
    rows = make_rows([(3, 9, (2,)), (0, 1, ())], [1, 0])
    qkv = torch.randn(len(rows.places), 8 * 32, generator=generator)
    alone, memories = qkv[:, 4 * 32 :].clone(), [make_memory(heads, torch.float32, slots=2) for _ in range(2)]
    for memory, given in zip(memories, (qkv, alone), strict=True):
        (steps or native(torch.float32)).place(given, rows, norms, memory, 1)
    assert torch.equal(memories[0].keys, memories[1].keys)
    assert torch.equal(memories[0].values, memories[1].values)
    assert memories[0].keys[1].any()


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 70])
def test_native_norm_and_gate_equal_plain_torch(dtype: torch.dtype, rows: int) -> None:
    generator = torch.Generator().manual_seed(8)
    x, delta = (torch.randn(rows, 200, generator=generator).to(dtype) for _ in range(2))
    weight, plain = torch.rand(200, generator=generator), TorchSteps()
    for added in (None, delta):
        own, other = x.clone(), x.clone()
        got, wanted = native(dtype).add_rmsnorm(own, added, weight, 1e-5), plain.add_rmsnorm(other, added, weight, 1e-5)
        torch.testing.assert_close(got, wanted, atol=TOLERANCE[dtype], rtol=0)
        torch.testing.assert_close(own, other, atol=TOLERANCE[dtype], rtol=0)
    wide = torch.randn(rows, 400, generator=generator).to(dtype) * 30  # far into both tails
    torch.testing.assert_close(
        native(dtype).silu_mul(wide), plain.silu_mul(wide), atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype]
    )


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_native_steps_of_a_row_with_nan_spoil_that_row_alone(dtype: torch.dtype) -> None:
    heads, generator = make_heads(4, 2, 32), torch.Generator().manual_seed(9)
    memory, rows = make_memory(heads, dtype, slots=2), make_rows([(0, 6, ()), (0, 6, ())], [0, 1])
    x = torch.randn(12, 8 * 32, generator=generator).to(dtype)
    x[2, 5] = torch.nan
    steps = native(dtype)
    y = steps.add_rmsnorm(x, None, torch.ones(256), 1e-5)
    steps.place(y, rows, (None, None), memory, 0)
    out = steps.silu_mul(steps.attend(y, rows, memory, 0))
    assert torch.isfinite(out[[0, 1, *range(6, 12)]]).all()
    assert not torch.isfinite(out[2:6].float().sum(1)).any()


@needs_compiler
@pytest.mark.parametrize(("queries", "groups"), [(4, 4), (14, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_native_attention_of_tokens_before_one_with_nan_is_as_without_it(
    dtype: torch.dtype, queries: int, groups: int
) -> None:
    """Rows may share the text before it: queries are computed side by side, and 0 x NaN is NaN."""
    heads, generator = make_heads(queries, groups, 64), torch.Generator().manual_seed(10)
    memory, rows = make_memory(heads, dtype, slots=1), make_rows([(9, 40, ())], [0])
    fill(memory, generator)
    qkv = torch.randn(40, (queries + 2 * groups) * 64, generator=generator).to(dtype)
    before = native(dtype).attend(qkv, rows, memory, 0)
    memory.keys[:, 0, :, 29:], memory.values[:, 0, :, 29:] = torch.nan, torch.nan
    after = native(dtype).attend(qkv, rows, memory, 0)
    torch.testing.assert_close(after[:20], before[:20], atol=TOLERANCE[dtype], rtol=0)
    assert after[20:].isnan().all()
