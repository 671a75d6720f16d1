"""Rows that fail, in prefill or in decode, fail alone, and what they leave behind reaches nobody."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from app.backbone import Backbone, Row
from app.backbone.runner import Prefilled, PrefillItem
from app.engine import Engine, Request, RowRequest, Sampling
from tests.architectures import build_backbone
from tests.engines import ends, generate, make_engine, run, tokens_of

BAD = 666  # a token that breaks the model


def plant(engine: Engine, *, decode: Any = None, prefill: Any = None) -> None:
    """Let the runner raise what `decode` says of the tokens fed and the rows' lengths, and `prefill` of the items. A
    decode that raises has done its work before, so that whatever it wrote is there."""
    honest_decode, honest_prefill = engine.runner.decode, engine.runner.prefill

    def breaking_decode(tokens: Tensor, lengths: Tensor, longest: int) -> Tensor:
        error = decode(tokens.tolist(), lengths.tolist()) if decode else None
        logits = honest_decode(tokens, lengths, longest)
        if error is not None:
            raise error
        return logits

    def breaking_prefill(start: int, items: Sequence[PrefillItem]) -> Prefilled:
        error = prefill(items) if prefill else None
        if error is not None:
            raise error
        return honest_prefill(start, items)

    engine.runner.decode = breaking_decode  # type: ignore[method-assign]
    engine.runner.prefill = breaking_prefill  # type: ignore[method-assign]


def rows(count: int) -> list[Request]:
    """Rows of different lengths."""
    return [generate(str(i), *range(4 + 20 * i, 9 + 21 * i), max_tokens=4 + i % 3) for i in range(count)]


def answers(engine: Engine, requests: Sequence[Request]) -> dict[str, list[int]]:
    for request in requests:
        engine.submit(request)
    return {name: tokens_of(events) for name, events in run(engine).items()}


@pytest.mark.parametrize("victim", range(7))
@pytest.mark.parametrize("name", ["llama", "bloom"])
def test_row_that_raises_in_decode_fails_alone_wherever_it_sits(name: str, victim: int) -> None:
    backbone = build_backbone(name)
    engine = make_engine(backbone, max_rows=7, max_padding=0.9)
    requests = rows(7)
    wanted = answers(make_engine(backbone, max_rows=7, max_padding=0.9), requests)
    fed, length = wanted[str(victim)][0], requests[victim].rows[0].row.total  # as the victim's first decode has them
    for request in requests:
        engine.submit(request)
    first = engine.step()
    plant(engine, decode=lambda *rows: ValueError("planted") if (fed, length) in zip(*rows, strict=True) else None)
    events = run(engine)
    for event in first:
        events[event.request_id].insert(0, event)
    assert ends(events)[str(victim)] == "error"
    for other in wanted:
        if other != str(victim):
            assert tokens_of(events[other]) == wanted[other]


def test_decode_that_runs_out_of_memory_goes_on_in_halves_and_later_whole_again(
    llama: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.engine.isolation._RECOVERY", 4)
    engine, sizes = make_engine(llama, max_rows=8, max_padding=0.9), []

    def short_of_memory(tokens: list[int], _: list[int]) -> Exception | None:
        sizes.append(len(tokens))
        return torch.OutOfMemoryError("planted") if len(tokens) > 3 and len(sizes) < 12 else None

    plant(engine, decode=short_of_memory)
    requests = [generate(str(i), *range(4 + i, 9 + i), max_tokens=12) for i in range(8)]
    assert answers(engine, requests) == answers(make_engine(llama, max_rows=8, max_padding=0.9), requests)
    assert sizes[:6] == [8, 4, 2, 2, 2, 2]
    assert sizes[6:10] == [2, 2, 2, 2]  # what did not fit is not tried again at once
    assert sizes[-1] == 8


def test_prefill_that_runs_out_of_memory_goes_on_in_halves(llama: Backbone) -> None:
    engine = make_engine(llama, max_rows=8, max_padding=0.9)
    plant(engine, prefill=lambda items: MemoryError("planted") if len(items) > 2 else None)
    assert answers(engine, rows(8)) == answers(make_engine(llama, max_rows=8, max_padding=0.9), rows(8))


def test_row_that_raises_in_prefill_fails_alone_and_shared_text_begins_anew_behind_it(llama: Backbone) -> None:
    text = tuple(range(10, 40))
    group = Request(
        "group", tuple(RowRequest(Row((*text, end)), None, Sampling(4)) for end in (7, 8, BAD, 9)), 1e9, shared=30
    )
    seen: list[list[int]] = []

    def breaks(items: Sequence[PrefillItem]) -> Exception | None:
        seen.append([item.trunk for item in items])
        return RuntimeError("planted") if any(BAD in item.row.ids for item in items) else None

    engine = make_engine(llama)
    engine.scheduler.packed = True
    plant(engine, prefill=breaks)
    engine.submit(group)
    events = run(engine)["group"]
    assert [event.row for event in events if event.finish == "error"] == [2]
    for i, end in ((0, 7), (1, 8), (3, 9)):
        healthy = make_engine(llama)
        assert tokens_of(events, i) == answers(healthy, [generate("x", *text, end, max_tokens=4)])["x"]
    assert seen == [[0, 30, 30, 30], [0, 30], [0, 30], [0], [0]]


def test_coupled_group_with_a_failing_member_fails_whole_and_its_neighbours_go_on(llama: Backbone) -> None:
    engine = make_engine(llama, max_padding=0.9)
    engine.load("bad", torch.full((3, llama.hidden_size), float("nan")))
    members = (RowRequest(Row((5, 6, 7)), None, Sampling(5)), RowRequest(Row((-1, -2, -3, 5), 3), "bad", Sampling(5)))
    engine.submit(Request("pair", members, 1e9, coupled=True))
    engine.submit(generate("a"))
    events = run(engine)
    assert [(event.row, event.finish) for event in events["pair"]] == [(0, "error"), (1, "error")]
    assert tokens_of(events["a"]) == answers(make_engine(llama), [generate("a")])["a"]


@torch.inference_mode()
def spoil(engine: Engine, slot: int, value: float) -> None:
    """Fill the first 60 places of a slot with a value."""
    memory = getattr(engine.runner, "_memory", None)
    layers = engine.runner._cache.layers if memory is None else [memory]  # type: ignore[attr-defined]
    for layer in layers:
        for part in (layer.keys, layer.values):
            part[..., slot, :, :60, :] = value


@pytest.mark.parametrize("name", ["llama", "gpt2"])  # the packed runner, and the one that pads
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_what_a_row_left_in_its_slot_never_reaches_the_next(name: str, value: float) -> None:
    backbone = build_backbone(name)
    engine = make_engine(backbone, max_rows=2)
    engine.submit(generate("spoilt", *range(4, 40), max_tokens=30))
    engine.step()
    spoil(engine, 0, value)  # by hand, within the row's length and beyond
    engine.step()
    engine.cancel("spoilt")
    requests = [generate("later", 5, 6, 7, max_tokens=20), generate("beside", *range(9, 30), max_tokens=30)]
    got = answers(engine, requests)
    wanted = answers(make_engine(backbone, max_rows=2), requests)
    assert {name: got[name] for name in wanted} == wanted
