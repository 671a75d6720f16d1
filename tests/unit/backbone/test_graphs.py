"""Decode steps of fixed shapes, recorded and repeated, equal the plain ones. The recorder here is torch's own tracer:
like a CUDA graph it keeps operations and addresses, and forgets every number the host held."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from app.backbone.decoder import Decoder
from app.backbone.decoder_steps import TorchSteps
from app.backbone.graphs import StaticDecode, Step, key_bucket, row_bucket
from app.backbone.packed_runner import PackedRunner
from app.backbone.rows import Row
from app.backbone.runner import PrefillItem
from app.backbone.slot_memory import SlotMemory
from tests.architectures import build_model

SLOTS, PLACES = 5, 150
TOLERANCE = 1e-4


class Recorder:
    """A capture that works without a GPU: runs the step, traces it, and repeats the trace."""

    def __init__(self) -> None:
        self.recorded = self.repeated = 0

    def __call__(self, step: Step) -> Step:
        step()
        trace = make_fx(step)()
        self.recorded += 1

        def repeat() -> None:
            self.repeated += 1
            trace()

        return repeat


class Rig:
    """Static decode over random keys and values, beside a packed runner with the same in its slots."""

    def __init__(self, name: str = "llama", capture: Callable[[Step], Step] | None = None, most: int = 8) -> None:
        self.decoder = Decoder(build_model(name), steps=TorchSteps())
        self.memory = self.decoder.memory(slots=SLOTS + 1, places=PLACES)
        self.plain = PackedRunner(self.decoder, slots=SLOTS, places=PLACES)
        generator = torch.Generator().manual_seed(1)
        for ours, theirs in self._memories():
            ours.copy_(torch.randn(ours.shape, generator=generator))
            theirs.copy_(ours[:, :SLOTS])
        self.static = StaticDecode(self.decoder, self.memory, slots=SLOTS, capture=capture, most=most)

    def _memories(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        other: SlotMemory = self.plain._memory
        return [(self.memory.keys, other.keys), (self.memory.values, other.values)]

    def step(self, tokens: list[int], lengths: list[int], longest: int | None = None) -> torch.Tensor:
        """One step of both, which must agree in logits and in all they keep."""
        fed, held = torch.tensor(tokens), torch.tensor(lengths)
        with torch.inference_mode():
            got = self.static(fed, held, max(lengths) if longest is None else longest)
            wanted = self.plain.decode(fed, held, max(lengths))
        torch.testing.assert_close(got, wanted, atol=TOLERANCE, rtol=0)
        for ours, theirs in self._memories():
            torch.testing.assert_close(ours[:, :SLOTS], theirs, atol=TOLERANCE, rtol=0)
        return got


@pytest.mark.parametrize("name", ["llama", "qwen3", "narrow_heads"])
@pytest.mark.parametrize("recording", [False, True], ids=["eager", "recorded"])
def test_steps_of_fixed_shapes_equal_plain_steps_as_rows_come_and_go(name: str, recording: bool) -> None:
    rig = Rig(name, Recorder() if recording else None)
    lengths = [3, 70, 12, 62, 149]
    for step, count in enumerate((4, 4, 3, 1, 2, 5, 4, 3)):
        rows = [length + (step if i < 4 else 0) for i, length in enumerate(lengths[:count])]
        rig.step([7 * i + step for i in range(count)], rows)


def test_steps_of_fixed_shapes_in_bfloat16_stay_near_plain_ones() -> None:
    decoder = Decoder(build_model("qwen3").to(torch.bfloat16), steps=TorchSteps())
    row = PrefillItem(Row(tuple(range(5, 40))))
    fed, lengths = torch.tensor([17]), torch.tensor([35])
    answers = []
    with torch.inference_mode():
        for static in (True, False):
            runner = PackedRunner(decoder, slots=2, places=96, static=static)
            runner.prefill(0, [row])
            answers.append(runner.decode(fed, lengths, 35))
    got, wanted = answers
    torch.testing.assert_close(got, wanted, atol=0.04 * float(wanted.abs().max()), rtol=0)


def test_a_recorded_step_is_repeated_with_the_rows_of_now_and_not_recorded_again() -> None:
    recorder = Recorder()
    rig = Rig(capture=recorder)
    first, second = rig.step([1, 2, 3], [5, 9, 20]), rig.step([4, 5, 6], [40, 2, 21])
    assert (recorder.recorded, recorder.repeated) == (1, 2)
    assert not torch.allclose(first, second)
    rig.step([1, 2, 3, 4], [5, 9, 20, 63])
    assert recorder.recorded == 1
    rig.step([1, 2, 3, 4], [5, 9, 20, 64])
    assert rig.static.buckets == [(4, 64), (4, 128)]


def test_an_answer_stays_what_it_was_when_the_next_step_runs() -> None:
    rig = Rig()
    first = rig.step([1, 2], [5, 9])
    kept = first.clone()
    rig.step([3, 4], [6, 10])
    assert torch.equal(first, kept)


def test_rows_that_only_fill_up_touch_no_slot_of_others_and_no_answer() -> None:
    rig = Rig()
    for ours, theirs in rig._memories():  # what slots 3 and 4 hold is poison to whoever reads it
        ours[:, 3:], theirs[:, 3:] = torch.nan, torch.nan
    before = rig.memory.keys[:, 3:SLOTS].clone()
    with torch.inference_mode():
        got = rig.static(torch.tensor([1, 2, 3]), torch.tensor([5, 9, 20]), 20)
        wanted = rig.plain.decode(torch.tensor([1, 2, 3]), torch.tensor([5, 9, 20]), 20)
    torch.testing.assert_close(got, wanted, atol=TOLERANCE, rtol=0)
    assert torch.equal(rig.memory.keys[:, 3:SLOTS].isnan(), before.isnan())


def test_places_beyond_a_row_are_never_seen_however_wide_the_bucket() -> None:
    rig = Rig()
    narrow = rig.step([8], [30])
    wide = rig.step([8], [30], longest=PLACES - 1)
    torch.testing.assert_close(wide, narrow, atol=1e-5, rtol=0)


def test_the_step_unused_for_longest_is_forgotten_when_there_are_too_many() -> None:
    recorder = Recorder()
    rig = Rig(capture=recorder, most=2)
    for count, length in ((1, 10), (2, 10), (1, 11), (4, 10), (1, 12)):
        rig.step([3] * count, [length] * count)
    assert rig.static.buckets == [(4, 64), (1, 64)]
    assert recorder.recorded == 3


def test_steps_that_cannot_be_recorded_run_unrecorded() -> None:
    tried = []

    def refuse(step: Step) -> Step:
        tried.append(step)
        raise RuntimeError("operation not permitted when stream is capturing")

    rig = Rig(capture=refuse)
    rig.step([1, 2], [5, 9])
    rig.step([1, 2], [6, 10])
    assert len(tried) == 1


def test_running_out_of_memory_while_recording_is_left_to_the_caller() -> None:
    def full(step: Step) -> Step:
        raise torch.OutOfMemoryError("no room")

    rig = Rig(capture=full)
    for _ in range(2):
        with pytest.raises(torch.OutOfMemoryError):
            rig.static(torch.tensor([1]), torch.tensor([5]), 5)


def test_static_decode_where_rows_share_bases_is_refused() -> None:
    decoder = Decoder(build_model("llama"))
    if decoder.steps.shares_bases:
        with pytest.raises(ValueError, match="own slot"):
            PackedRunner(decoder, slots=2, places=32, static=True)


def test_buckets_hold_what_they_are_for_and_are_few() -> None:
    assert [row_bucket(n, 33) for n in (1, 2, 3, 5, 16, 17, 32, 33)] == [1, 2, 4, 8, 16, 32, 32, 33]
    for places in (100, 1024, 32_768):
        buckets = [key_bucket(keys, places) for keys in range(1, places + 1)]
        assert buckets == sorted(buckets)
        for keys, bucket in enumerate(buckets, start=1):
            assert keys <= bucket <= places
            assert bucket - keys < 64 or bucket <= 1.25 * keys
            assert bucket % 64 == 0 or bucket == places
        assert len(set(buckets)) <= 40
