from __future__ import annotations

import os
from pathlib import Path

import torch

from app.backbone import Backbone, Row
from app.backbone.kv import SlotCache
from app.backbone.layout import PAD, attention_mask, embed, lay_out, stack_prompts


def seen(mask: torch.Tensor, row: int, column: int) -> list[int]:
    return mask[row, 0, column].nonzero()[:, 0].tolist()


def test_mask_of_branches_lets_each_see_the_trunk_and_itself() -> None:
    layout = lay_out([Row((5, 6, 7))], offsets=[0], branches=[[(8, 9), (10,)]])
    mask = attention_mask(layout, layout.width)
    assert layout.positions.tolist() == [[0, 1, 2, 3, 4, 3]]
    assert seen(mask, 0, 4) == [0, 1, 2, 3, 4]
    assert seen(mask, 0, 5) == [0, 1, 2, 5]


def test_mask_of_cached_tokens_shows_them_to_their_row_alone() -> None:
    layout = lay_out([Row((-1, -2, 5, 6), 2), Row((7, 8))], offsets=[0, 0], cached=[2, 0])
    mask = attention_mask(layout, layout.keys)
    assert layout.storage.tolist() == [[2, 3], [0, 1]]
    assert seen(mask, 0, 0) == [0, 1, 2]
    assert seen(mask, 1, 1) == [0, 1]


def test_mask_of_padding_is_never_empty_and_padding_is_never_seen() -> None:
    layout = lay_out([Row((1, 2, 3)), Row((4,))], offsets=[0, 0])
    mask = attention_mask(layout, layout.width)
    assert layout.segments.tolist() == [[0, 0, 0], [0, PAD, PAD]]
    assert mask.any(-1).all()
    assert seen(mask, 1, 2) == [0]


def test_mask_with_a_window_counts_positions_not_places() -> None:
    layout = lay_out([Row((1, 2, 3))], offsets=[0], branches=[[(8,), (9,)]])
    mask = attention_mask(layout, layout.width, window=2)
    assert seen(mask, 0, 4) == [2, 4]


def test_embed_of_shared_and_own_prompts_puts_each_rows_vectors_at_its_slots(llama: Backbone) -> None:
    first, second = torch.full((2, llama.hidden_size), 1.0), torch.full((3, llama.hidden_size), 2.0)
    table, offsets = stack_prompts([first, second, None, first])
    rows = [Row((-1, 9, -2)), Row((9, -3)), Row((9, 8)), Row((-2,))]
    out = embed(lay_out(rows, offsets=offsets), llama.embedding, table)
    assert table is not None
    assert table.shape == (5, llama.hidden_size)
    assert out[0, 0, 0] == out[0, 2, 0] == out[3, 0, 0] == 1.0
    assert out[1, 1, 0] == 2.0
    assert torch.equal(out[2, :2], llama.embedding(torch.tensor([9, 8])))


def test_cache_after_a_wipe_holds_no_trace_of_a_poisoned_row() -> None:
    cache = SlotCache(1, slots=2, places=4)
    poison = torch.full((2, 1, 3, 2), float("nan"))
    cache.view(0, 3, torch.tensor([[0, 1, 2], [0, 1, 2]]))
    cache.update(poison, poison, 0)
    cache.wipe(0)
    assert torch.isfinite(cache.layers[0].keys[0]).all()
    assert torch.isfinite(cache.layers[0].values[0]).all()


def test_cache_of_padding_leaves_the_rows_places_alone() -> None:
    cache = SlotCache(1, slots=1, places=4)
    ones = torch.ones(1, 1, 2, 2)
    cache.view(0, 2, torch.tensor([[0, 1]]))
    cache.update(ones, ones, 0)
    cache.view(0, 2, torch.tensor([[-1, -1]]))
    keys, _ = cache.update(ones * 7, ones * 7, 0)
    assert torch.equal(keys, ones)


def test_cache_of_many_long_slots_takes_memory_only_where_rows_are() -> None:
    cache = SlotCache(1, slots=64, places=4096)
    row = torch.ones(1, 8, 3, 64)
    before = resident_bytes()
    cache.view(0, 3, torch.tensor([[0, 1, 2]]))
    cache.update(row, row, 0)
    taken = cache.layers[0].keys.numel() * 4 * 2
    assert taken > 1 << 30
    assert resident_bytes() - before < 64 << 20


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
