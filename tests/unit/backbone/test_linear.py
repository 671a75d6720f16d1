"""Products of long batches have whole numbers of rows: no answer changes, whatever lies behind them."""

from __future__ import annotations

import pytest
import torch

from app.backbone.linear import can_pack, frozen_linear, room_for, rounded

pytestmark = pytest.mark.skipif(not can_pack(torch.empty(1, 1)), reason="torch was built without oneDNN")


def test_rounded_leaves_a_decode_step_alone_and_fills_up_long_batches() -> None:
    assert [rounded(n) for n in (1, 63, 64, 65, 80, 81, 2300)] == [1, 63, 64, 80, 80, 96, 2304]


@pytest.mark.parametrize("n", [3, 64, 65, 300])
@pytest.mark.parametrize("room", [True, False])
def test_product_of_rows_with_room_behind_them_equals_the_plain_one(n: int, room: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    weight, bias = torch.randn(48, 32, generator=generator), torch.randn(48, generator=generator)
    x = room_for(n, 32, weight) if room else torch.empty(n, 32)
    x.copy_(torch.randn(n, 32, generator=generator))
    if room:
        x.as_strided((rounded(n), 32), (32, 1))[n:] = torch.nan
    got = frozen_linear([weight], [bias])(x)
    assert got.shape == (n, 48)
    torch.testing.assert_close(got, x @ weight.T + bias, atol=1e-4, rtol=0)


def test_product_of_a_piece_reads_the_room_behind_the_whole() -> None:
    weight, x = torch.randn(8, 32), room_for(256 + 70, 32, torch.empty(0)).normal_()
    (_, tail), linear = x.split(256), frozen_linear([weight], [None])
    torch.testing.assert_close(linear(tail), tail @ weight.T, atol=1e-4, rtol=0)


def test_product_of_columns_or_of_rows_without_room_stays_as_it_is() -> None:
    weight, wide = torch.randn(8, 32), torch.randn(96, 64)
    linear = frozen_linear([weight], [None])
    torch.testing.assert_close(linear(wide[:70, :32]), wide[:70, :32] @ weight.T, atol=1e-4, rtol=0)
    torch.testing.assert_close(linear(torch.ones(70, 32)), torch.ones(70, 32) @ weight.T, atol=1e-4, rtol=0)
