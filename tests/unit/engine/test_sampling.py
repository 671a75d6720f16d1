from __future__ import annotations

import torch
from torch import Tensor

from app.engine.sampling import draw as sample
from app.engine.sampling import draw_uncut, mix, uniform


def draw(
    logits: Tensor, *, temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0, seed: int = 0, steps: int = 0
) -> Tensor:
    rows = logits.shape[0]
    return sample(
        logits,
        torch.full((rows,), temperature),
        torch.full((rows,), top_p),
        torch.full((rows,), top_k),
        torch.full((rows,), seed),
        torch.arange(steps, steps + rows),
    )


def test_uniform_numbers_are_even_and_differ_by_seed_and_step() -> None:
    numbers = uniform(torch.arange(20_000) % 7, torch.arange(20_000))
    assert float(numbers.min()) >= 0
    assert float(numbers.max()) < 1
    histogram = torch.histc(numbers.float(), bins=20, min=0, max=1)
    assert float(((histogram - 1000) ** 2 / 1000).sum()) < 60  # chi-squared, 19 degrees of freedom
    assert len(set(numbers.tolist())) == 20_000


def test_samples_follow_the_distribution() -> None:
    probs = torch.tensor([0.5, 0.3, 0.15, 0.05])
    tokens = draw(probs.log().expand(20_000, 4))
    shares = torch.bincount(tokens, minlength=4) / 20_000
    assert torch.allclose(shares, probs, atol=0.015)


def test_top_k_and_top_p_cut_the_tail() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().expand(2_000, 4)
    assert set(draw(logits, top_k=2).tolist()) == {0, 1}
    assert set(draw(logits, top_p=0.75).tolist()) == {0, 1}
    assert set(draw(logits, top_p=0.81).tolist()) == {0, 1, 2}
    assert set(draw(logits, top_p=1e-6).tolist()) == {0}
    assert set(draw(logits, top_p=0.0).tolist()) == {0}  # what a number below float32's becomes


def test_a_rows_token_does_not_depend_on_its_neighbours() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(8, 50, generator=generator)
    temperature = torch.tensor([0.1, 1.0, 0.5, 2.0, 0.3, 1.0, 1.0, 0.7])
    top_p, top_k = torch.full((8,), 0.9), torch.tensor([0, 5, 0, 7, 0, 1, 0, 3])
    seeds, steps = torch.arange(8), torch.arange(8)
    together = sample(logits, temperature, top_p, top_k, seeds, steps)
    for i in range(8):
        row = slice(i, i + 1)
        alone = sample(logits[row], temperature[row], top_p[row], top_k[row], seeds[row], steps[row])
        assert alone.item() == together[i].item()


def test_rows_that_keep_all_tokens_follow_the_distribution_at_their_temperature() -> None:
    probs = torch.tensor([0.5, 0.3, 0.15, 0.05])
    temperature = torch.full((20_000,), 2.0)
    drawn = draw_uncut(probs.log().expand(20_000, 4), temperature, torch.zeros(20_000).long(), torch.arange(20_000))
    wanted = probs.sqrt() / probs.sqrt().sum()
    assert torch.allclose(torch.bincount(drawn, minlength=4) / 20_000, wanted, atol=0.015)


def test_mix_is_the_mean_of_the_members_probabilities_at_their_temperature() -> None:
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(2))
    temperature = torch.tensor([0.0, 2.0, 0.0, 2.0, 2.0])
    groups, sizes = torch.tensor([0, 1, 0, 1, 1]), torch.tensor([2, 3])
    mixed = mix(logits, temperature, groups, sizes)
    first = (logits[0].softmax(-1) + logits[2].softmax(-1)) / 2
    second = sum((logits[i] / 2).softmax(-1) for i in (1, 3, 4)) / 3
    for row, wanted in ((0, first), (2, first), (1, second), (3, second), (4, second)):
        scale = float(temperature[row]) or 1.0
        torch.testing.assert_close((mixed[row] / scale).softmax(-1), wanted)
