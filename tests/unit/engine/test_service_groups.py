"""Several rows asked at once: together, or coupled."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from app.backbone import Backbone, LoadedPrompt
from app.engine import Answer, Ask, Sampling
from app.errors import (
    CapabilityMissing,
    ChorusError,
    ContextTooLong,
    DeadlineExceeded,
    EngineFailure,
    InvalidRequest,
    Overloaded,
)
from prompt_store.models import Decoding
from tests.engines import row_of, serving, until_running
from tests.prompts import TEMPLATES, TEXTS, WORDS, make_prompt

pytestmark = pytest.mark.anyio
BRIEF, LONG = Decoding(max_tokens=6), Decoding(max_tokens=100)
SUFFIX = TEMPLATES[2]


def suffix_prompts(llama: Backbone, count: int) -> list[LoadedPrompt]:
    return [make_prompt(llama, SUFFIX, words=WORDS if i % 2 else None, seed=i) for i in range(count)]


def same(one: Answer, other: Answer | ChorusError) -> None:
    assert isinstance(other, Answer)
    assert (one.text, one.token_ids, one.finish_reason, one.usage) == (
        other.text,
        other.token_ids,
        other.finish_reason,
        other.usage,
    )
    if one.scores:
        assert other.scores == pytest.approx(one.scores, abs=1e-4)


@pytest.mark.parametrize("packed", [False, True])
async def test_rows_asked_together_equal_rows_asked_alone(llama: Backbone, packed: bool) -> None:
    prompts = [
        *suffix_prompts(llama, 5),
        make_prompt(llama, TEMPLATES[0]),
        make_prompt(llama, TEMPLATES[4], words=WORDS),
    ]
    asks = [Ask(prompt, {"text": text}, BRIEF) for text in (TEXTS[2], TEXTS[4]) for prompt in prompts]
    async with serving(llama) as service:
        service._engine.scheduler.packed = packed
        together = await service.answer_together(asks, timeout_s=60)
        for ask, answer in zip(asks, together, strict=True):
            same(await service.answer(ask.prompt, ask.input, decoding=ask.decoding, timeout_s=60), answer)


async def test_suffix_tasks_over_one_text_are_prefilled_in_one_batch_that_shares_it(llama: Backbone) -> None:
    text = " ".join(TEXTS)
    async with serving(llama) as service:
        service._engine.scheduler.packed = True
        shared: list[list[int]] = []
        honest = service._engine.runner.prefill

        def prefill(start, items):  # type: ignore[no-untyped-def]
            shared.append([item.trunk for item in items])
            return honest(start, items)

        service._engine.runner.prefill = prefill  # type: ignore[method-assign]
        await service.answer_together([Ask(p, {"text": text}, BRIEF) for p in suffix_prompts(llama, 6)], timeout_s=60)
        trunk = row_of(llama, suffix_prompts(llama, 1)[0], text, Sampling(1)).row.total - 6
    assert shared == [[0, *[trunk] * 5]]


async def test_error_of_one_row_stands_in_its_own_place(llama: Backbone) -> None:
    good, poisoned = make_prompt(llama, TEMPLATES[0]), make_prompt(llama, TEMPLATES[0], seed=9)
    assert poisoned.vectors is not None
    poisoned.vectors.fill_(float("nan"))
    text = {"text": TEXTS[0]}
    asks = [
        Ask(good, text, BRIEF),
        Ask(good, {"wrong": "a"}, BRIEF),
        Ask(poisoned, text, BRIEF),
        Ask(good, {"text": "many words " * 200}, BRIEF),
        Ask(good, text, BRIEF),
    ]
    async with serving(llama) as service:
        outcomes = await service.answer_together(asks, timeout_s=60)
        alone = await service.answer(good, text, decoding=BRIEF, timeout_s=60)
        assert [type(o) for o in outcomes] == [Answer, InvalidRequest, EngineFailure, ContextTooLong, Answer]
        same(alone, outcomes[0])
        same(alone, outcomes[4])
        assert await service.answer_together([], timeout_s=60) == []
        late = await service.answer_together(asks[:1], timeout_s=0.0)
    assert isinstance(late[0], DeadlineExceeded)


async def test_group_whose_caller_goes_away_is_cancelled_whole(llama: Backbone) -> None:
    prompt = make_prompt(llama, TEMPLATES[0])
    async with serving(llama) as service:
        asks = [Ask(prompt, {"text": text}, LONG) for text in TEXTS]
        tasks = [
            asyncio.create_task(service.answer_together(asks, timeout_s=60)),
            asyncio.create_task(service.answer_coupled(asks[:3], timeout_s=60)),
        ]
        await until_running(service, 8)
        for task in tasks:
            task.cancel()
        assert all(isinstance(o, asyncio.CancelledError) for o in await asyncio.gather(*tasks, return_exceptions=True))
        await service.check_ready()
        assert service.stats().finished.get("cancelled") == 8
        assert (service._admission.rows, service._admission.tokens) == (0, 0)


async def test_coupled_stream_adds_up_to_the_coupled_answer(llama: Backbone) -> None:
    asks = [
        Ask(make_prompt(llama, t, seed=s), {"text": "naïve 🙂"}, BRIEF, seed=4) for s, t in enumerate(TEMPLATES[:3])
    ]
    sampled = [Ask(a.prompt, a.input, Decoding(max_tokens=30, temperature=1.5, stop=("qu",)), seed=4) for a in asks]
    async with serving(llama) as service:
        for members in (asks, sampled):
            whole = await service.answer_coupled(members, timeout_s=60)
            events = [event async for event in service.stream_coupled(members, timeout_s=60)]
            assert "".join(event.text for event in events) == whole.answer.text
            assert (events[-1].finish_reason, events[-1].usage) == (whole.answer.finish_reason, whole.answer.usage)
            assert events[-1].members == pytest.approx(whole.members, abs=1e-3)
            assert events[-1].agreement == whole.agreement
            assert whole.answer.usage.virtual_tokens == 9 + 7 + 6
            assert all(event.finish_reason is None for event in events[:-1])


async def test_coupled_members_that_are_equal_agree_and_write_what_one_writes(llama: Backbone) -> None:
    ask = Ask(make_prompt(llama, TEMPLATES[0]), {"text": TEXTS[0]}, BRIEF)
    async with serving(llama) as service:
        whole = await service.answer_coupled([ask] * 3, timeout_s=60)
        alone = await service.answer(ask.prompt, ask.input, decoding=BRIEF, timeout_s=60)
    assert whole.answer.token_ids == alone.token_ids
    assert whole.agreement == 1.0
    assert whole.members == pytest.approx((whole.members[0],) * 3)


async def test_coupled_members_that_cannot_write_together_are_refused(llama: Backbone) -> None:
    text, label = make_prompt(llama, TEMPLATES[0]), make_prompt(llama, TEMPLATES[0], words=WORDS)

    async def refused(asks: Sequence[Ask]) -> type[BaseException]:
        with pytest.raises(ChorusError) as caught:
            await service.answer_coupled(asks, timeout_s=60)
        return caught.type

    async with serving(llama) as service:
        assert await refused([]) is CapabilityMissing
        assert await refused([Ask(text, {"text": "a"}, BRIEF)] * 9) is CapabilityMissing
        assert await refused([Ask(text, {"text": "a"}, BRIEF), Ask(label, {"text": "a"}, BRIEF)]) is CapabilityMissing
        assert await refused([Ask(text, {"text": "a"}, BRIEF), Ask(text, {"x": "a"}, BRIEF)]) is InvalidRequest


async def test_coupled_member_that_has_no_room_for_the_first_ones_answer_is_too_long(
    llama: Backbone,
) -> None:
    """The first member's decoding writes for all, so that is what every one must have room for."""
    short, wide = make_prompt(llama, TEMPLATES[0]), make_prompt(llama, "<prompt:70>{text}", seed=1)
    asks = [Ask(short, {"text": "a"}, Decoding(max_tokens=120)), Ask(wide, {"text": "a"}, Decoding(max_tokens=8))]
    async with serving(llama) as service:
        with pytest.raises(ContextTooLong):
            await service.answer_coupled(asks, timeout_s=60)


@pytest.mark.parametrize("words", [None, WORDS])
async def test_members_that_begin_with_the_same_words_answer_together_as_alone_cold_and_warm(
    llama: Backbone, words: dict[str, list[str]] | None
) -> None:
    """Their keys and values of those words belong to each one's prompt, and are not read in a neighbour's slot."""
    template = "Read what somebody wrote of a film that came out last week, and say how he liked it:<prompt:5>{text} So"
    prompts = [make_prompt(llama, template, words=words, seed=seed) for seed in range(4)]
    asks = [Ask(prompt, {"text": "dull"}, BRIEF) for prompt in prompts]
    async with serving(llama) as service:
        used = make_prompt(llama, TEMPLATES[2], seed=9)
        await service.answer_together([Ask(used, {"text": " ".join(TEXTS)}, BRIEF)] * 6, timeout_s=60)
        cold = await service.answer_together(asks, timeout_s=60)
        warm = await service.answer_together(asks, timeout_s=60)
        coupled = None if words else [await service.answer_coupled(asks, timeout_s=60) for _ in range(2)]
    async with serving(llama) as fresh:
        for ask, *answers in zip(asks, cold, warm, strict=True):
            alone = await fresh.answer(ask.prompt, ask.input, decoding=BRIEF, timeout_s=60)
            for answer in answers:
                same(alone, answer)
    if coupled:
        assert coupled[0].answer.token_ids == coupled[1].answer.token_ids
        assert coupled[0].members == pytest.approx(coupled[1].members, abs=1e-3)


async def test_multi_byte_streams_add_up_to_their_answers_and_never_split_a_character(llama: Backbone) -> None:
    """Random weights at a high temperature write stray bytes all the time."""
    prompt = make_prompt(llama, TEMPLATES[0])
    decoding = Decoding(max_tokens=40, temperature=2.0)
    async with serving(llama) as service:
        for seed in range(8):
            answer = await service.answer(prompt, {"text": "日本語 🙂"}, decoding=decoding, seed=seed, timeout_s=60)
            events = [
                event
                async for event in service.stream(
                    prompt, {"text": "日本語 🙂"}, decoding=decoding, seed=seed, timeout_s=60
                )
            ]
            assert "".join(event.text for event in events) == answer.text
            decoded = llama.tokenizer.decode(answer.token_ids)
            assert answer.text in (decoded, decoded.removeprefix(" "))


async def test_queue_bounded_in_tokens_refuses_what_exceeds_it_and_an_empty_one_takes_anything(llama: Backbone) -> None:
    prompt = make_prompt(llama, TEMPLATES[4])
    asks = [Ask(prompt, {"text": "a"}, LONG)] * 4
    async with serving(llama, max_rows=1, max_queued_tokens=150) as service:
        first = asyncio.create_task(service.answer_together(asks, timeout_s=60))  # a group, whatever its size
        await until_running(service, 1)
        with pytest.raises(Overloaded, match="tokens are waiting; 150 may") as caught:
            await service.answer(prompt, {"text": "a"}, decoding=LONG, timeout_s=60)
        assert caught.value.retry_after_s is not None
        assert caught.value.retry_after_s >= 1
        assert all(isinstance(answer, Answer) for answer in await first)
        assert (service._admission.rows, service._admission.tokens) == (0, 0)


async def test_hot_task_does_not_keep_another_tenants_row_waiting(llama: Backbone) -> None:
    hot, cold = make_prompt(llama, TEMPLATES[0], seed=1), make_prompt(llama, TEMPLATES[0], seed=2)
    ended: list[str] = []

    async def ask(prompt: LoadedPrompt, tenant: str) -> None:
        await service.answer(prompt, {"text": "a"}, decoding=Decoding(max_tokens=20), timeout_s=60, tenant=tenant)
        ended.append(tenant)

    async with serving(llama, max_rows=2) as service:
        flood = [asyncio.create_task(ask(hot, "flood")) for _ in range(40)]
        await until_running(service, 2)
        await asyncio.gather(*flood, ask(cold, "patient"))
    assert ended.index("patient") < 8
