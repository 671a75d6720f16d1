"""Products with a shared weight are held to torch's own, on shapes that fill no block."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from app.backbone.native.product import shared_linear

probe = shared_linear(torch.zeros(1, 32, dtype=torch.bfloat16))
needs_product = pytest.mark.skipif(probe is None, reason="no compiler, or no bfloat16 products on this processor")


@needs_product
@pytest.mark.parametrize("tokens", [0, 1, 2, 3, 7, 8, 9, 23])
@pytest.mark.parametrize(("outputs", "inputs"), [(1, 32), (47, 64), (48, 96), (131, 896)])
def test_product_with_a_shared_weight_equals_torchs_own(tokens: int, outputs: int, inputs: int) -> None:
    generator = torch.Generator().manual_seed(outputs + tokens)
    x = torch.randn(tokens, inputs, generator=generator).bfloat16()
    weight = torch.randn(outputs, inputs, generator=generator).bfloat16()
    product = shared_linear(weight)
    assert product is not None
    wanted = F.linear(x.double(), weight.double())
    torch.testing.assert_close(product(x).double(), wanted, atol=1e-3, rtol=2**-8)  # one rounding to bfloat16


@needs_product
def test_product_keeps_nan_in_its_own_row() -> None:
    x = torch.ones(9, 64, dtype=torch.bfloat16)
    x[4, 3] = torch.nan
    product = shared_linear(torch.ones(50, 64, dtype=torch.bfloat16))
    assert product is not None
    assert torch.isfinite(product(x)).all(1).tolist() == [row != 4 for row in range(9)]


@needs_product
def test_shared_weight_is_not_copied() -> None:
    weight = torch.zeros(5, 32, dtype=torch.bfloat16)
    product = shared_linear(weight)
    assert product is not None
    assert product.weight.data_ptr() == weight.data_ptr()


@pytest.mark.parametrize(
    "weight",
    [torch.zeros(4, 32), torch.zeros(4, 40, dtype=torch.bfloat16), torch.zeros(32, 4, dtype=torch.bfloat16).t()],
    ids=["float32", "odd width", "not contiguous"],
)
def test_shared_linear_of_a_weight_it_cannot_serve_is_none(weight: torch.Tensor) -> None:
    assert shared_linear(weight) is None
