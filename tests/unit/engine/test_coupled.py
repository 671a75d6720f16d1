"""Coupled groups: members write one text from the mean of their next-token distributions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from app.backbone import Backbone, LoadedPrompt, Row
from app.backbone.layout import embed, lay_out
from app.engine import Engine, Event, Request, RowRequest, Sampling
from tests.engines import generate, make_engine, row_of, run, tokens_of
from tests.prompts import TEMPLATES, TEXTS, make_prompt

TEXT = TEXTS[0]


def couple(engine: Engine, prompts: list[LoadedPrompt], rows: list[RowRequest], name: str = "pair") -> None:
    vectors = {prompt.digest: prompt.vectors for prompt in prompts if prompt.vectors is not None}
    engine.submit(Request(name, tuple(rows), 1e9, coupled=True), vectors)


@torch.no_grad()
def by_hand(
    backbone: Backbone, prompts: list[LoadedPrompt], rows: list[RowRequest], tokens: int
) -> tuple[list[int], list[float]]:
    """Greedy tokens of the mean, and each member's summed log-probability of them, by the model's own forward over the
    whole rows at every step."""

    def logits(prompt: LoadedPrompt, row: RowRequest, written: list[int]) -> Tensor:
        layout = lay_out([row.row], offsets=[0])
        words = backbone.embedding(torch.tensor([written], dtype=torch.int64))
        embeds = torch.cat((embed(layout, backbone.embedding, prompt.vectors), words), dim=1)
        return backbone.model(inputs_embeds=embeds).logits[0, -1].float()

    written: list[int] = []
    sums = [0.0] * len(rows)
    for _ in range(tokens):
        each = [logits(prompt, row, written) for prompt, row in zip(prompts, rows, strict=True)]
        token = int(torch.stack([of.softmax(-1) for of in each]).mean(0).argmax())
        sums = [total + float(of.log_softmax(-1)[token]) for total, of in zip(sums, each, strict=True)]
        written.append(token)
    return written, sums


def logprobs(events: list[Event], row: int) -> float:
    return sum(event.view.logprob for event in events if event.row == row and event.view is not None)


def test_coupled_tokens_and_log_probabilities_equal_the_mean_by_hand(llama: Backbone) -> None:
    prompts = [make_prompt(llama, TEMPLATES[t], seed=t) for t in (0, 2, 4)]
    rows = [row_of(llama, prompt, TEXT, Sampling(8)) for prompt in prompts]
    engine = make_engine(llama, max_rows=5)
    couple(engine, prompts, rows)
    for i in range(4):  # neighbours that come and go
        engine.submit(generate(f"beside-{i}", *range(5, 9 + i), max_tokens=2 + i))
    events = run(engine)["pair"]
    tokens, sums = by_hand(llama, prompts, rows, 8)
    assert [tokens_of(events, i) for i in range(3)] == [tokens] * 3
    assert [logprobs(events, i) for i in range(3)] == pytest.approx(sums, abs=1e-3)
    assert any(event.view is not None and not event.view.agrees for event in events)  # the mean is not one of them


@pytest.mark.parametrize("sampling", [Sampling(8), Sampling(8, 1.3, seed=3), Sampling(8, 0.7, 0.9, 30, seed=4)])
@pytest.mark.parametrize("members", [1, 3])
def test_coupled_group_of_equal_members_writes_what_one_writes_alone(
    llama: Backbone, sampling: Sampling, members: int
) -> None:
    prompt = make_prompt(llama, TEMPLATES[0])
    row = row_of(llama, prompt, TEXT, sampling)
    engine, single = make_engine(llama), make_engine(llama)
    couple(engine, [prompt], [row] * members)
    assert prompt.vectors is not None
    single.submit(Request("alone", (row,), 1e9), {prompt.digest: prompt.vectors})
    events, alone = run(engine)["pair"], run(single)["alone"]
    for i in range(members):
        assert tokens_of(events, i) == tokens_of(alone)
    if sampling.temperature == 0:
        assert all(event.view is not None and event.view.agrees for event in events)


def test_coupled_group_waits_until_all_members_fit_and_then_starts_whole(llama: Backbone) -> None:
    engine = make_engine(llama, max_rows=3)
    for i in range(2):
        engine.submit(generate(f"first-{i}", max_tokens=4 + i))
    engine.step()
    couple(engine, [], [RowRequest(generate("x", 5, 6, 7 + i).rows[0].row, None, Sampling(3)) for i in range(3)])
    engine.submit(generate("behind", max_tokens=2))
    order: list[tuple[str, int]] = []
    while not engine.idle:
        started = {(event.request_id, event.row) for event in engine.step() if event.token is not None}
        order += sorted(started - set(order))
        engine.check_integrity()
    assert [key for key in order if key[0] == "pair"] == [("pair", 0), ("pair", 1), ("pair", 2)]
    assert order[-1] == ("behind", 0)  # it did not take the slots the group was waiting for


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([], {}, "has rows"),
        ([RowRequest(Row(()), None, Sampling(3))], {}, "has tokens"),
        ([generate("x").rows[0]] * 5, {"coupled": True}, "5 coupled rows exceed the 4"),
        ([generate("x").rows[0], generate("x", max_tokens=9).rows[0]], {"coupled": True}, "in the same way"),
        ([RowRequest(generate("x").rows[0].row)], {}, "either generates"),
        ([generate("x", 5, 6).rows[0], generate("x", 5, 7).rows[0]], {"shared": 2}, "do not share"),
        ([generate("x", -1, 6).rows[0], generate("x", -1, 7).rows[0]], {"shared": 1}, "virtual"),
    ],
)
def test_group_that_can_never_run_is_refused(
    llama: Backbone, rows: list[RowRequest], options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_engine(llama).submit(Request("x", tuple(rows), 1e9, **options))  # type: ignore[arg-type]
