from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from app.backbone.kv import untouched_zeros
from benchmarks.engine.peer import BasePeer, in_sequence, read_last_rows_well
from benchmarks.engine.resident import resident_bytes
from benchmarks.engine.stage import ROWS, Entrant, _module, interleave
from benchmarks.engine.throughput import GROUPED, STATIC
from benchmarks.engine.workload import Ask, Workload, make_asks, make_even_asks, make_tasks

MIB = 1 << 20


@pytest.mark.parametrize("rows", [1, 2])
def test_last_place_when_laid_out_has_the_strides_of_a_new_tensor(rows: int) -> None:
    states = torch.randn(rows, 7, 5)
    last = states[:, -1:]
    assert last.stride() == (35, 5, 1)
    laid = in_sequence(last)
    assert laid.stride() == (5, 5, 1)
    assert laid.data_ptr() != last.data_ptr()
    assert torch.equal(laid, last)


def test_tensor_when_laid_out_already_is_not_copied() -> None:
    x = torch.randn(2, 1, 5)
    assert in_sequence(x) is x


def test_output_layer_when_one_row_is_asked_sees_it_laid_out() -> None:
    seen: list[tuple[int, ...]] = []

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = torch.nn.Linear(5, 3)
            self.head.register_forward_hook(lambda _, given, __: seen.append(given[0].stride()))

        def get_output_embeddings(self) -> torch.nn.Module:
            return self.head

    model = Model()
    read_last_rows_well(model)
    model.head(torch.randn(1, 7, 5)[:, -1:])
    assert seen == [(5, 5, 1)]


def test_even_requests_when_made_are_as_many_of_each_task_in_no_order() -> None:
    work = Workload(tasks=4, prompt=(3, 3))
    tasks = make_tasks(work, hidden=8, vocabulary=512)
    asks = make_even_asks(work, tasks, vocabulary=512, turn=1, count=32)
    order = [ask.task for ask in asks]
    assert Counter(order) == dict.fromkeys(range(4), 8)
    assert order != sorted(order)
    texts = [ask.ids for turn in (1, 2) for ask in make_even_asks(work, tasks, vocabulary=512, turn=turn, count=32)]
    texts += [ask.ids for ask in make_asks(work, tasks, vocabulary=512, turn=1, count=32)]
    assert len(set(texts)) == 96
    with pytest.raises(ValueError, match="cannot be shared out evenly"):
        make_even_asks(work, tasks, vocabulary=512, turn=1, count=33)


def test_grouped_peer_when_asked_few_requests_still_fills_its_batches() -> None:
    work = Workload(tasks=8)
    assert GROUPED.requests(work, 16) == GROUPED.requests(work, 256) == 8 * 32
    assert STATIC.requests(work, 256) == 128
    assert Entrant("slow", "peer", share=1 / 16).requests(work, 4) == 1


def test_grouped_peer_when_it_is_slow_is_asked_no_less_and_says_its_rows() -> None:
    asked: list[tuple[int, bool]] = []

    class Slow:
        rounds = 3

        def prepare(self, *_: object) -> None: ...

        def ask(self, *_: object, count: int, even: bool, **__: object) -> dict[str, float]:
            asked.append((count, even))
            return {"seconds": 400.0, "rows_a_batch": 32.0}

    found = interleave(Slow(), {"": Workload(tasks=8)}, [GROUPED], requests=64)  # type: ignore[arg-type]
    assert asked == [(256, True)] * 3
    assert found[GROUPED.label].rows_a_batch == 32.0


def test_batches_when_a_peer_forms_them_are_averaged_over_the_round(tmp_path: Path) -> None:
    class Peer(BasePeer):
        def answer(self, inputs: Sequence[Ask], how: str) -> list[Any]:
            by_task = Counter(ask.task for ask in inputs)
            self.batches += list(by_task.values())
            return [0] * len(inputs)

    peer = Peer({"model": "tiny", "folder": str(tmp_path), "threads": torch.get_num_threads()})
    peer.prepare(Workload(tasks=4, prompt=(2, 2)).as_json())
    assert peer.measure(1, 32, even=True)["rows_a_batch"] == 8.0
    assert peer.measure(2, 64, even=True)["rows_a_batch"] == 16.0  # nothing of the round before


def test_block_size_when_a_peer_is_named_with_one_reaches_its_process() -> None:
    assert _module("vllm-128") == ("peer_vllm", {"rows": ROWS, "block_size": 128})
    assert _module("continuous-64") == ("peer_continuous", {"rows": ROWS, "block_size": 64, "batch_tokens": 2048})
    assert _module("chorus-lean")[0] == "chorus_engine"


def test_memory_when_part_of_it_was_written_is_resident_in_that_part() -> None:
    zeros = untouched_zeros((64 * MIB,), torch.uint8, torch.device("cpu"))
    assert resident_bytes(zeros) <= 2 * MIB  # its head, where the allocator writes
    zeros[20 * MIB : 40 * MIB] = 1
    assert 20 * MIB <= resident_bytes(zeros) <= 26 * MIB  # pages may be huge, 2 MiB
    zeros.fill_(1)
    assert resident_bytes(zeros) == 64 * MIB
