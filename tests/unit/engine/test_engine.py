from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from app.backbone import Backbone, Row
from app.backbone.runner import Prefilled, PrefillItem
from app.engine import Engine, EngineConfig, Event, Request, Sampling
from tests.engines import row_of
from tests.prompts import WORDS, make_prompt


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def make_engine(llama: Backbone, clock: Any = None, **options: Any) -> Engine:
    return Engine(llama, EngineConfig(**{"max_rows": 4, "max_context": 64, **options}), clock=clock or Clock())


def generate(name: str, *ids: int, max_tokens: int = 5, deadline: float = 1e9, digest: str | None = None) -> Request:
    return Request.single(name, Row(tuple(ids) or (5, 6, 7)), digest, deadline, Sampling(max_tokens=max_tokens))


def run(engine: Engine) -> dict[str, list[Event]]:
    events: dict[str, list[Event]] = {}
    for _ in range(500):
        for event in engine.step():
            events.setdefault(event.request_id, []).append(event)
        engine.check_integrity()
        if engine.idle:
            return events
    raise AssertionError("the engine did not come to rest")


def ends(events: dict[str, list[Event]]) -> dict[str, str]:
    for of in events.values():
        assert [event.finish is not None for event in of] == [False] * (len(of) - 1) + [True]
    return {name: str(of[-1].finish) for name, of in events.items()}


def test_more_requests_than_slots_all_end_once(llama: Backbone) -> None:
    engine = make_engine(llama)
    for i in range(13):
        engine.submit(generate(str(i), *range(4, 6 + i), max_tokens=1 + i % 4))
    assert set(ends(run(engine))) == {str(i) for i in range(13)}
    assert engine.stats().running == engine.stats().waiting == 0


def test_request_past_its_deadline_never_reaches_prefill(llama: Backbone) -> None:
    clock = Clock()
    engine = make_engine(llama, clock)
    engine.submit(generate("late", deadline=1.0))
    clock.now = 2.0
    assert ends(run(engine)) == {"late": "timeout"}
    assert engine.stats().prompt_tokens == 0


def test_request_whose_deadline_passes_midway_stops_before_the_next_step(llama: Backbone) -> None:
    clock = Clock()
    engine = make_engine(llama, clock)
    engine.submit(generate("slow", max_tokens=50, deadline=1.0))
    first = engine.step()
    clock.now = 1.5
    assert [event.finish for event in first] == [None]
    assert [event.finish for event in engine.step()] == ["timeout"]
    assert engine.idle


def test_cancel_of_waiting_running_and_unknown_requests_frees_them(llama: Backbone) -> None:
    engine = make_engine(llama, max_rows=1)
    engine.submit(generate("running", max_tokens=50))
    engine.submit(generate("waiting"))
    engine.step()
    for name in ("running", "waiting", "unknown"):
        engine.cancel(name)
    assert {event.request_id: event.finish for event in engine.step()} == {
        "running": "cancelled",
        "waiting": "cancelled",
    }
    assert engine.idle
    engine.check_integrity()


def test_request_that_cannot_fit_is_refused(llama: Backbone) -> None:
    with pytest.raises(ValueError, match="exceed the context of 64"):
        make_engine(llama).submit(generate("long", *range(4, 60), max_tokens=10))


def test_request_of_an_unknown_prompt_is_refused(llama: Backbone) -> None:
    with pytest.raises(KeyError):
        make_engine(llama).submit(generate("lost", digest="0" * 64))


def test_row_that_breaks_the_model_fails_alone(llama: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, healthy = make_engine(llama), make_engine(llama)
    honest = engine.runner.prefill

    def breaks(start: int, items: Sequence[PrefillItem]) -> Prefilled:
        if any(666 in item.row.ids for item in items):
            raise RuntimeError("planted")
        return honest(start, items)

    monkeypatch.setattr(engine.runner, "prefill", breaks)
    for name in "abcd":
        ids = (5, 666, 7) if name == "c" else (5, 6, 7)
        engine.submit(generate(name, *ids))
        if name != "c":
            healthy.submit(generate(name, *ids))
    got, wanted = run(engine), run(healthy)
    assert ends(got)["c"] == "error"
    for name in "abd":
        assert [event.token for event in got[name]] == [event.token for event in wanted[name]]


def test_row_with_nan_in_its_prompt_fails_alone_and_leaves_no_trace(llama: Backbone) -> None:
    engine, healthy = make_engine(llama), make_engine(llama)
    engine.load("bad", torch.full((3, llama.hidden_size), float("nan")))
    poisoned = Request.single("poisoned", Row((-1, -2, -3, 5, 6), 3), "bad", 1e9, Sampling(max_tokens=5))
    engine.submit(generate("a"))
    engine.submit(poisoned)
    for name in ("b", "c"):
        engine.submit(generate(name))
    for name in "abc":
        healthy.submit(generate(name))
    got, wanted = run(engine), run(healthy)
    assert ends(got)["poisoned"] == "error"
    engine.submit(generate("later", *range(4, 12)))
    healthy.submit(generate("later", *range(4, 12)))
    got |= run(engine)
    wanted |= run(healthy)
    for name in ("a", "b", "c", "later"):
        assert [event.token for event in got[name]] == [event.token for event in wanted[name]]


def test_step_that_fails_as_a_whole_ends_every_request_with_an_error(llama: Backbone) -> None:
    engine = make_engine(llama)
    for name in "abcdef":
        engine.submit(generate(name))
    engine.step()
    events = engine.fail_all("planted")
    assert {event.request_id for event in events} == set("abcdef")
    assert {event.finish for event in events} == {"error"}
    engine.check_integrity()
    engine.submit(generate("next"))
    assert ends(run(engine)) == {"next": "length"}


def test_rows_that_ended_in_a_step_that_fails_later_keep_their_ending(
    llama: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(llama)
    words = make_prompt(llama, "{text}\nSentiment:", words=WORDS)
    engine.submit(Request("label", (row_of(llama, words, "a warm story"),), 1e9))
    engine.submit(generate("text"))

    def broken(*_: object) -> None:
        raise torch.OutOfMemoryError("planted")

    with monkeypatch.context() as planted:
        planted.setattr(engine._state, "open", broken)
        with pytest.raises(torch.OutOfMemoryError):
            engine.step()
    ended = {event.request_id: event.finish for event in engine.fail_all("planted")}
    assert ended == {"label": "label", "text": "error"}
    engine.check_integrity()
    engine.submit(generate("next"))
    assert ends(run(engine)) == {"next": "length"}
    assert engine.fail_all("planted") == []  # what was told once is not told again


def test_same_words_under_two_prompts_do_not_share_keys_and_values(llama: Backbone) -> None:
    engine = make_engine(llama)
    generator = torch.Generator().manual_seed(4)
    for name in ("one", "two"):
        engine.load(name, torch.randn(3, llama.hidden_size, generator=generator))
    row = Row((-1, -2, -3, 5, 6, 7), 3)
    answers = []
    for turn, digest in itertools.product(range(2), ("one", "two")):
        engine.submit(Request.single(f"{turn}{digest}", row, digest, 1e9, Sampling(max_tokens=5)))
        answers.append([event.token for event in run(engine)[f"{turn}{digest}"]])
    assert answers[0] == answers[2]
    assert answers[1] == answers[3]
    assert answers[0] != answers[1]
