from __future__ import annotations

import torch

from app.engine.groups import Group
from app.engine.sampling import draw_uncut
from app.engine.slots import Lineup, SlotState
from app.engine.types import Request, Sampling
from tests.engines import generate

CPU = torch.device("cpu")


def group_of(sampling: Sampling) -> Group:
    row = generate("x").rows[0].row
    return Group(Request.single("x", row, None, 1e9, sampling))


def test_each_token_of_a_row_has_a_random_number_of_its_own() -> None:
    group, state = group_of(Sampling(50, temperature=1.0, seed=3)), SlotState(2, CPU)
    state.open(1, group.sequences)
    lineup = Lineup.of(group.sequences, CPU)
    logits = torch.zeros(1, 1000)
    drawn = [state.advance(1, logits, lineup).tokens[0] for _ in range(20)]
    seeds, steps = torch.full((20,), 3), torch.arange(20)
    assert drawn == draw_uncut(logits.expand(20, -1), torch.ones(20), seeds, steps).tolist()
    assert len(set(drawn)) > 15
    assert state.token[1] == drawn[-1]


def test_row_whose_logits_are_not_finite_is_told_from_its_neighbours() -> None:
    rows = [group_of(Sampling(5)).sequences[0] for _ in range(4)]
    state = SlotState(4, CPU)
    state.open(0, rows)
    logits = torch.zeros(4, 10)
    logits[:, 7] = 1.0
    logits[1, 3], logits[2, 3] = float("nan"), float("-inf")
    assert state.advance(0, logits, Lineup.of(rows, CPU)).tokens == [7, -1, -1, 7]


def test_rows_of_a_large_vocabulary_in_float16_are_finite_though_their_sum_is_not() -> None:
    rows = [group_of(Sampling(5)).sequences[0] for _ in range(2)]
    state = SlotState(2, CPU)
    state.open(0, rows)
    logits = torch.full((2, 50_000), -9.0, dtype=torch.float16)
    logits[:, 7] = 1.0
    logits[1, 40_000] = torch.nan
    assert torch.isinf(logits[0].sum())
    assert state.advance(0, logits, Lineup.of(rows, CPU)).tokens == [7, -1]
