from __future__ import annotations

import pytest
import torch

from app.backbone import greedy
from app.backbone.greedy import greedy_or_failed


@pytest.fixture(params=["native", "torch"])
def _form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "torch":
        monkeypatch.setattr(greedy, "load", lambda dtype: None)
    elif greedy.load(torch.float32) is None:
        pytest.skip("no C compiler on this machine")


@pytest.mark.usefixtures("_form")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("vocabulary", [1, 5, 63, 64, 2049, 9000])
def test_greedy_token_is_the_largest_of_its_row(vocabulary: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(vocabulary)
    logits = torch.randn(6, vocabulary, generator=generator)
    wanted = torch.randint(vocabulary, (6,), generator=generator)
    logits = logits.sub_(10).scatter_(1, wanted[:, None], 7.0).to(dtype)
    assert torch.equal(greedy_or_failed(logits), wanted)


@pytest.mark.usefixtures("_form")
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", [0, 70, 4999])
def test_greedy_token_of_a_row_with_a_number_that_is_not_finite_is_minus_one(bad: float, place: int) -> None:
    logits = torch.full((3, 5000), -3e38)
    logits[:, 17] = -1e38
    logits[1, place] = bad
    assert greedy_or_failed(logits).tolist() == [17, -1, 17]


@pytest.mark.usefixtures("_form")
def test_greedy_token_of_rows_that_do_not_lie_in_one_piece_is_that_of_the_rows() -> None:
    logits = torch.arange(24.0).view(4, 6).t()[:, 1:]
    assert greedy_or_failed(logits).tolist() == [2] * 6
