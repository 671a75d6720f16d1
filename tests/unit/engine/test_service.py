from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from app.backbone import Backbone
from app.engine import EngineConfig, EngineService, crew
from app.engine.board import FlightBoard
from app.engine.load import DrainRate
from app.errors import (
    ContextTooLong,
    DeadlineExceeded,
    Draining,
    EngineFailure,
    InvalidRequest,
    Overloaded,
    VersionUnavailable,
)
from prompt_store.models import Decoding, Golden
from tests.engines import serving, until_running
from tests.prompts import TEMPLATES, TEXTS, WORDS, make_prompt

pytestmark = pytest.mark.anyio
LONG = Decoding(max_tokens=100)


async def test_answers_asked_at_once_equal_answers_asked_alone(llama: Backbone) -> None:
    prompts = [make_prompt(llama, t, words=w, seed=i) for i, t in enumerate(TEMPLATES) for w in (None, WORDS)]
    async with serving(llama) as service:

        async def ask(prompt: Any, text: str) -> Any:
            return await service.answer(prompt, {"text": text}, decoding=prompt.decoding, timeout_s=60)

        pairs = [(prompt, text) for prompt in prompts for text in TEXTS]
        together = await asyncio.gather(*(ask(*pair) for pair in pairs))
        for pair, answer in zip(pairs, together, strict=True):
            alone = await ask(*pair)
            assert (alone.text, alone.token_ids, alone.finish_reason) == (
                answer.text,
                answer.token_ids,
                answer.finish_reason,
            )
            if alone.scores:
                assert answer.scores == pytest.approx(alone.scores, abs=1e-4)
                assert sum(answer.scores.values()) == pytest.approx(1)


async def test_stream_adds_up_to_the_answer_and_ends_with_its_usage(llama: Backbone) -> None:
    prompt = make_prompt(llama, TEMPLATES[0])
    async with serving(llama) as service:
        decoding = Decoding(max_tokens=30, temperature=1.5, stop=(" the", "qu"))
        for seed in range(5):
            answer = await service.answer(prompt, {"text": "a"}, decoding=decoding, seed=seed, timeout_s=60)
            stream = service.stream(prompt, {"text": "a"}, decoding=decoding, seed=seed, timeout_s=60)
            events = [event async for event in stream]
            assert "".join(event.text for event in events) == answer.text
            assert events[-1].finish_reason == answer.finish_reason
            assert events[-1].usage == answer.usage
            assert not any(stop in answer.text for stop in decoding.stop)


async def test_usage_counts_text_and_virtual_tokens_apart(llama: Backbone) -> None:
    prompt = make_prompt(llama, TEMPLATES[1])
    async with serving(llama) as service:
        answer = await service.answer(prompt, {"text": "a"}, decoding=Decoding(max_tokens=3), timeout_s=60)
    assert answer.usage.virtual_tokens == 7
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 7 + answer.usage.completion_tokens


async def test_caller_who_goes_away_cancels_the_row(llama: Backbone) -> None:
    prompt = make_prompt(llama, TEMPLATES[0])
    async with serving(llama) as service:
        task = asyncio.create_task(service.answer(prompt, {"text": "a"}, decoding=LONG, timeout_s=60))
        stream = service.stream(prompt, {"text": "a"}, decoding=LONG, timeout_s=60)
        await anext(stream)
        await until_running(service, 2)
        task.cancel()
        await stream.aclose()
        with pytest.raises(asyncio.CancelledError):
            await task
        await service.check_ready()  # behind the cancellations in the engine's queue
        assert service.stats().finished.get("cancelled") == 2
        assert service.stats().running == 0


async def test_full_queue_refuses_with_a_time_to_come_back(llama: Backbone) -> None:
    prompt = make_prompt(llama, TEMPLATES[0])
    async with serving(llama, max_rows=1, max_queued_rows=2) as service:
        tasks = [
            asyncio.create_task(service.answer(prompt, {"text": "a"}, decoding=LONG, timeout_s=60)) for _ in range(9)
        ]
        results = await asyncio.gather(*tasks, return_exceptions=True)
    refused = [result for result in results if isinstance(result, Overloaded)]
    assert refused
    assert all(error.retry_after_s and error.retry_after_s >= 1 for error in refused)
    assert len(refused) + sum(not isinstance(result, BaseException) for result in results) == 9


async def test_deadline_that_passes_is_an_error_and_in_a_stream_an_ending(llama: Backbone) -> None:
    prompt = make_prompt(llama, TEMPLATES[0])
    async with serving(llama) as service:
        with pytest.raises(DeadlineExceeded):
            await service.answer(prompt, {"text": "a"}, decoding=LONG, timeout_s=0.0)
        with pytest.raises(DeadlineExceeded):
            await anext(service.stream(prompt, {"text": "a"}, decoding=LONG, timeout_s=0.0))


async def test_input_that_does_not_fit_names_all_three_lengths(llama: Backbone) -> None:
    prompt = make_prompt(llama, TEMPLATES[0])
    async with serving(llama, max_context=32) as service:
        with pytest.raises(
            ContextTooLong, match=r"\d+ text tokens, 9 virtual tokens and 20 new tokens exceed the context of 32"
        ):
            await service.answer(prompt, {"text": "a b c"}, decoding=Decoding(max_tokens=20), timeout_s=60)
        with pytest.raises(InvalidRequest):
            await service.answer(prompt, {"wrong": "a"}, decoding=Decoding(), timeout_s=60)


@pytest.mark.parametrize("words", [None, WORDS])
async def test_input_that_comes_out_without_a_token_is_the_callers_error(llama: Backbone, words: Any) -> None:
    prompt = make_prompt(llama, "{text}", words=words, bos="none")
    async with serving(llama) as service:
        with pytest.raises(InvalidRequest, match="not one token"):
            await service.answer(prompt, {"text": ""}, decoding=prompt.decoding, timeout_s=10)
        assert (
            await service.answer(prompt, {"text": "dull"}, decoding=prompt.decoding, timeout_s=10)
        ).usage.prompt_tokens


async def test_stop_lets_running_answers_finish_and_refuses_newcomers(llama: Backbone) -> None:
    prompt = make_prompt(llama, TEMPLATES[0])
    service = EngineService(llama, EngineConfig(max_rows=4, max_context=128, threads=1))
    await service.start()
    running = asyncio.create_task(service.answer(prompt, {"text": "a"}, decoding=Decoding(max_tokens=40), timeout_s=60))
    await asyncio.sleep(0.01)
    stopping = asyncio.create_task(service.stop(30))
    await asyncio.sleep(0)
    with pytest.raises(Draining):
        await service.answer(prompt, {"text": "a"}, decoding=LONG, timeout_s=60)
    assert (await running).finish_reason in ("length", "stop")
    await stopping


async def test_stop_that_cannot_wait_ends_streams_with_drain(llama: Backbone) -> None:
    prompt = make_prompt(llama, TEMPLATES[0])
    service = EngineService(llama, EngineConfig(max_rows=4, max_context=160, threads=1))
    await service.start()
    stream = service.stream(prompt, {"text": "a"}, decoding=Decoding(max_tokens=140), timeout_s=60)
    await anext(stream)
    stopping = asyncio.create_task(service.stop(0))
    rest = [event async for event in stream]
    await stopping
    assert rest[-1].finish_reason == "drain"


async def test_admit_replays_golden_outputs_and_refuses_a_version_that_differs(llama: Backbone) -> None:
    labels, text = make_prompt(llama, TEMPLATES[0], words=WORDS), make_prompt(llama, TEMPLATES[2])
    async with serving(llama) as service:
        scored = await service.answer(labels, {"text": "a"}, decoding=Decoding(), timeout_s=60)
        spoken = await service.answer(text, {"text": "a"}, decoding=Decoding(max_tokens=4), timeout_s=60)
        true_scores = Golden(input={"text": "a"}, scores=scored.log_scores)
        true_tokens = Golden(input={"text": "a"}, tokens=spoken.token_ids, margins=(9.0,) * len(spoken.token_ids))
        await service.admit(replace(labels, golden=(true_scores,), digest="1" * 64))
        await service.admit(replace(text, golden=(true_tokens,), digest="2" * 64))
        assert scored.log_scores is not None
        shifted = {label: score + 0.1 for label, score in scored.log_scores.items()}
        with pytest.raises(VersionUnavailable, match="log-score"):
            await service.admit(replace(labels, golden=(Golden(input={"text": "a"}, scores=shifted),), digest="3" * 64))
        other = tuple(token + 1 for token in spoken.token_ids)
        wrong = Golden(input={"text": "a"}, tokens=other, margins=true_tokens.margins)
        with pytest.raises(VersionUnavailable, match="token 1"):
            await service.admit(replace(text, golden=(wrong,), digest="4" * 64))
        close_call = Golden(input={"text": "a"}, tokens=other, margins=(0.0,) * len(other))
        await service.admit(replace(text, golden=(close_call,), digest="5" * 64))


def test_drain_rate_grows_with_the_queue_and_stays_in_bounds() -> None:
    now = [0.0]
    rate = DrainRate(lambda: now[0])
    assert rate.seconds_for(10_000) == 1.0
    for _ in range(2):
        rate.begin()
        for _ in range(50):
            now[0] += 0.1
            rate.count(20)
        rate.rest()
        now[0] += 1000  # idle: says nothing about the rate
    assert rate.seconds_for(2000) == pytest.approx(5, rel=0.1)
    assert rate.seconds_for(10**6) == 60.0


async def test_request_the_engine_cannot_take_fails_alone_and_the_engine_goes_on(
    llama: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = make_prompt(llama, TEMPLATES[0])
    async with serving(llama) as service:
        with monkeypatch.context() as patch:
            patch.setattr(service._engine.prompts, "load", _refuse)
            with pytest.raises(EngineFailure, match="did not take"):
                await service.answer(prompt, {"text": "a"}, decoding=LONG, timeout_s=60)
        service.set_threads("two")  # type: ignore[arg-type]
        assert (await service.answer(prompt, {"text": "a"}, decoding=Decoding(max_tokens=2), timeout_s=60)).token_ids


@pytest.mark.parametrize("count", [1, 2])
async def test_statistics_tell_how_many_threads_compute(
    llama: Backbone, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr(crew, "CROWDED", float("inf"))
    prompt = make_prompt(llama, TEMPLATES[0])
    async with serving(llama) as service:
        service.set_threads(count)
        await service.answer(prompt, {"text": "a"}, decoding=Decoding(max_tokens=2), timeout_s=60)
        assert service.stats().threads == count


def _refuse(*_: object) -> None:
    raise RuntimeError("planted")


async def test_statistics_tell_how_rows_shared_steps_and_how_long_they_waited(llama: Backbone) -> None:
    prompts = [make_prompt(llama, TEMPLATES[0], seed=seed) for seed in range(3)]
    async with serving(llama) as service:
        ask = [service.answer(p, {"text": "ab"}, decoding=Decoding(max_tokens=4), timeout_s=60) for p in prompts]
        answers = await asyncio.gather(*ask)
        stats = service.stats()
    assert stats.prefill_rows.total == stats.queue_seconds.count == 3
    assert stats.prefill_rows.count == stats.steps_prefill
    assert stats.decode_rows.count == stats.decode_prompts.count == stats.steps_decode
    assert stats.decode_prompts.total == stats.decode_rows.total  # every row has a prompt of its own
    assert stats.inter_token_seconds.count == sum(answer.usage.completion_tokens - 1 for answer in answers)
    told = [answer.timing for answer in answers if answer.timing is not None]
    assert stats.prefill_seconds.count == stats.decode_seconds.count == len(told) == 3
    assert stats.queue_seconds.total == pytest.approx(sum(one.began - one.arrived for one in told))
    assert 0 < stats.prefill_seconds.total <= sum(one.first - one.began for one in told)
    assert stats.decode_seconds.total == pytest.approx(sum(one.ended - one.first for one in told))


@pytest.mark.parametrize("coldest", [1e-6, 1e-40, 5e-324])
async def test_temperature_next_to_nothing_answers_as_greedy(llama: Backbone, coldest: float) -> None:
    prompt = make_prompt(llama, TEMPLATES[0])
    async with serving(llama) as service:
        greedy, cold = [
            await service.answer(prompt, {"text": "a"}, decoding=Decoding(max_tokens=5, temperature=t), timeout_s=60)
            for t in (0.0, coldest)
        ]
    assert cold.token_ids == greedy.token_ids


async def test_the_event_loop_hears_of_a_whole_answer_at_its_ends_and_of_a_stream_at_every_step(
    llama: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = make_prompt(llama, TEMPLATES[0])
    decoding = Decoding(max_tokens=20, temperature=1.5)
    told: list[int] = []
    hand_out = FlightBoard.hand_out

    def count(board: FlightBoard, steps: Any) -> None:
        told.append(len(steps))
        hand_out(board, steps)

    monkeypatch.setattr(FlightBoard, "hand_out", count)
    async with serving(llama) as service:
        answer = await service.answer(prompt, {"text": "a"}, decoding=decoding, seed=3, timeout_s=60)
        whole = told.copy()
        told.clear()
        async for _ in service.stream(prompt, {"text": "a"}, decoding=decoding, seed=3, timeout_s=60):
            pass
    steps = answer.usage.completion_tokens + (answer.finish_reason == "stop")
    assert steps > 3
    assert whole == [1, steps - 1]
    assert told == [1] * steps


async def test_a_stream_beside_whole_answers_is_told_of_its_tokens_at_once(llama: Backbone) -> None:
    prompts = [make_prompt(llama, TEMPLATES[0], seed=seed) for seed in range(2)]
    async with serving(llama) as service:
        whole = asyncio.create_task(service.answer(prompts[0], {"text": "b"}, decoding=LONG, timeout_s=60))
        await until_running(service, 1)
        seen = 0
        async for _ in service.stream(prompts[1], {"text": "b"}, decoding=Decoding(max_tokens=4), timeout_s=60):
            seen += 1
            assert not whole.done()
        assert seen > 1
        assert (await whole).usage.completion_tokens == 100
