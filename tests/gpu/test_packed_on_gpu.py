"""What only a GPU shows: the packed runner there equals the reference, and recorded decode steps equal plain ones."""

from __future__ import annotations

import pytest
import torch

from app.backbone.decoder import Decoder
from app.backbone.packed_runner import PackedRunner
from app.backbone.reference import ReferenceRunner
from app.backbone.rows import Row
from app.backbone.runner import PrefillItem
from tests.architectures import VOCABULARY, build_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
]
RELATIVE = {torch.float32: 1e-4, torch.bfloat16: 0.04}


def rows(lengths: tuple[int, ...]) -> list[PrefillItem]:
    generator = torch.Generator().manual_seed(11)
    return [PrefillItem(Row(tuple(torch.randint(0, VOCABULARY, (n,), generator=generator).tolist()))) for n in lengths]


def decode(runner: PackedRunner | ReferenceRunner, items: list[PrefillItem], steps: int) -> list[torch.Tensor]:
    """Logits after the rows and after each of `steps` fixed tokens."""
    found = [runner.prefill(0, items).logits.float()]
    lengths = torch.tensor([item.row.total for item in items], device="cuda")
    for step in range(steps):
        fed = torch.full_like(lengths, 7 + step)
        found.append(runner.decode(fed, lengths + step, int(lengths.max()) + step).float())
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_packed_runner_on_a_gpu_equals_the_reference(name: str, dtype: torch.dtype) -> None:
    model = build_model(name).to("cuda", dtype)
    items = rows((4, 31, 17))
    with torch.inference_mode():
        got = decode(PackedRunner(Decoder(model), slots=4, places=96), items, 5)
        wanted = decode(ReferenceRunner(model, slots=4, places=96), items, 5)
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=RELATIVE[dtype] * max(1.0, float(theirs.abs().max())), rtol=0)


def test_recorded_steps_equal_plain_steps_after_rows_came_and_went() -> None:
    decoder = Decoder(build_model("llama").to("cuda"))
    runner = PackedRunner(decoder, slots=8, places=96)
    plain = PackedRunner(decoder, slots=8, places=96, static=False)
    with torch.inference_mode():
        for lengths in ((9, 40, 3), (5,), (30, 2, 8, 11, 60)):
            for ours, theirs in zip(decode(runner, rows(lengths), 4), decode(plain, rows(lengths), 4), strict=True):
                torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_steps_on_a_gpu_are_recorded_and_not_only_run() -> None:
    runner = PackedRunner(Decoder(build_model("llama").to("cuda")), slots=4, places=96)
    with torch.inference_mode():
        decode(runner, rows((4, 31, 17)), 2)
    assert runner._static is not None
    assert runner._static.buckets == [(4, 64)]


def test_a_freed_slot_full_of_nan_on_a_gpu_does_not_reach_its_next_row() -> None:
    model = build_model("llama").to("cuda")
    runner = PackedRunner(Decoder(model), slots=2, places=96)
    poison = torch.full((4, model.config.hidden_size), torch.nan, device="cuda")
    spoilt = PrefillItem(Row((-1, -2, -3, -4, *range(5, 40))), poison)
    with torch.inference_mode():
        wanted = decode(runner, rows((9, 20)), 3)
        assert not torch.isfinite(runner.prefill(0, [spoilt]).logits).any()
        runner.wipe(0)
        for ours, theirs in zip(decode(runner, rows((9, 20)), 3), wanted, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_a_replayed_step_never_waits_for_the_gpu() -> None:
    runner = PackedRunner(Decoder(build_model("llama").to("cuda")), slots=4, places=96)
    items = rows((6, 20))
    lengths, fed = torch.tensor([6, 20], device="cuda"), torch.tensor([5, 6], device="cuda")
    with torch.inference_mode():
        runner.prefill(0, items)
        runner.decode(fed, lengths, 20)
        torch.cuda.set_sync_debug_mode("error")
        try:
            runner.decode(fed, lengths + 1, 21)
        finally:
            torch.cuda.set_sync_debug_mode("default")
