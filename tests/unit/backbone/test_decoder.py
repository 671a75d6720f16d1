"""What the decoder leaves out or does in pieces changes no number."""

from __future__ import annotations

import pytest
import torch

from app.backbone import decoder as module
from app.backbone.decoder import Decoder, Reads
from app.backbone.decoder_steps import PackedRows, TorchSteps
from app.backbone.packed_batch import pack_rows
from app.backbone.rows import Row
from app.backbone.slot_memory import SlotMemory
from tests.architectures import build_model

LENGTHS = (9, 23, 14)
PLACES = 40
TOLERANCE = 1e-5


def packed(*, branches: bool = False) -> tuple[torch.Tensor, PackedRows, list[int]]:
    """ids [n] of three rows one behind the other, and where each one ends."""
    rows = [Row(tuple(range(5 + length, 5 + 2 * length))) for length in LENGTHS]
    batch = pack_rows(
        rows,
        start=0,
        cached=[0] * 3,
        trunks=[0] * 3,
        offsets=[0] * 3,
        branches=[[(7, 8), (9,)] if branches else [] for _ in rows],
        device=torch.device("cpu"),
    )
    return batch.ids, batch.rows, batch.ends


def run(decoder: Decoder, tokens: list[int] | None, *, branches: bool = False) -> tuple[torch.Tensor, SlotMemory]:
    ids, rows, _ = packed(branches=branches)
    reads = None if tokens is None else Reads(torch.tensor(tokens), picked(rows, tokens))
    memory = decoder.memory(slots=len(LENGTHS), places=PLACES)
    with torch.inference_mode():
        return decoder.run(decoder.embedding(ids), rows, memory, reads), memory


def picked(rows: PackedRows, tokens: list[int]) -> PackedRows:
    """The rows with these tokens alone, for plain torch."""
    spans, first = [], 0
    for span in rows.spans:
        count = sum(span.first <= token < span.first + span.count for token in tokens)
        spans.append(type(span)(first, count, span.slot))
        first += count
    return PackedRows(rows.places[tokens], rows.seen[tokens], spans)


class Counting(TorchSteps):
    """Plain steps that note how many tokens' queries were placed in the last layer."""

    def __init__(self) -> None:
        self.queries: list[int] = []

    def place(self, qkv, rows, norms, memory, layer) -> None:  # type: ignore[no-untyped-def]
        if qkv.shape[1] // memory.heads.width > 2 * memory.heads.groups and layer == memory.keys.shape[0] - 1:
            self.queries.append(qkv.shape[0])
        super().place(qkv, rows, norms, memory, layer)


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("few", [True, False])
def test_run_with_few_reads_computes_their_queries_alone_and_equals_reading_all(name: str, few: bool) -> None:
    steps = Counting()
    decoder = Decoder(build_model(name), steps=steps)
    n = sum(LENGTHS)
    tokens = packed()[2] if few else [8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 31, 45]
    wanted, whole = run(decoder, None)
    steps.queries.clear()
    got, memory = run(decoder, tokens)
    assert steps.queries == [len(tokens) if few else n]
    torch.testing.assert_close(got, wanted[tokens], atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(memory.keys, whole.keys, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(memory.values, whole.values, atol=TOLERANCE, rtol=0)


def test_run_in_pieces_of_the_feed_forward_equals_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model("llama")
    wanted, _ = run(Decoder(model, steps=TorchSteps()), None, branches=True)
    monkeypatch.setattr(module, "_PIECE_TOKENS", 16)
    monkeypatch.setattr(module, "_PIECE_BYTES", 1)
    decoder = Decoder(model, steps=TorchSteps())
    gates: list[int] = []

    class Pieces(TorchSteps):
        def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
            gates.append(gate_up.shape[0])
            return super().silu_mul(gate_up)

    decoder.steps = Pieces()
    got, _ = run(decoder, None, branches=True)
    assert max(gates) == 16
    torch.testing.assert_close(got, wanted, atol=TOLERANCE, rtol=0)


def test_packed_rows_say_where_trunk_and_branches_stand_and_what_they_see() -> None:
    batch = pack_rows(
        [Row((3, 4, 5, 6)), Row((3, 4, 9))],
        start=2,
        cached=[2, 0],
        trunks=[0, 2],
        offsets=[0, 0],
        branches=[[(7, 8), (9,)], []],
        device=torch.device("cpu"),
    )
    assert batch.ids.tolist() == [5, 6, 7, 8, 9, 9]
    assert batch.rows.places.tolist() == [[2, 2, 2], [3, 2, 3], [4, 2, 4], [5, 2, 5], [4, 2, 6], [2, 3, 2]]
    assert batch.rows.seen.tolist() == [[3, 0, 0], [4, 0, 0], [4, 4, 5], [4, 4, 6], [4, 6, 7], [3, 0, 0]]
    assert batch.ends == [1, 5]
