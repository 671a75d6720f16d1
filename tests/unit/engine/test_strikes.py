"""Content that broke the model again and again is refused; nothing else is, and not for ever."""

from __future__ import annotations

import pytest

from app.backbone import Backbone, Row
from app.engine import RowRequest
from app.engine.strikes import FORGET_S, KEPT, MOST, Strikes
from app.errors import EngineFailure, Quarantined
from prompt_store.models import Decoding
from tests.engines import Clock, serving
from tests.prompts import TEMPLATES, WORDS, make_prompt

ROW = RowRequest(Row((5, 6, 7)), "digest")
OTHERS = [RowRequest(Row((5, 6, 8)), "digest"), RowRequest(Row((5, 6, 7)), "another"), RowRequest(Row((5, 6, 7)))]


def struck_out(strikes: Strikes, row: RowRequest) -> bool:
    try:
        strikes.check(row)
    except Quarantined:
        return True
    return False


def test_third_failure_strikes_out_that_content_alone() -> None:
    strikes = Strikes(Clock())
    for failures in range(MOST):
        assert not struck_out(strikes, ROW), failures
        strikes.failed(ROW)
    assert struck_out(strikes, ROW)
    assert not any(struck_out(strikes, other) for other in OTHERS)


def test_strikes_are_forgotten_after_a_while() -> None:
    clock = Clock()
    strikes = Strikes(clock)
    for _ in range(MOST):
        strikes.failed(ROW)
    clock.now = FORGET_S + 1
    assert not struck_out(strikes, ROW)
    strikes.failed(ROW)
    assert not struck_out(strikes, ROW)


def test_failures_far_apart_never_strike_out() -> None:
    clock = Clock()
    strikes = Strikes(clock)
    for _ in range(2 * MOST):
        strikes.failed(ROW)
        clock.now += FORGET_S + 1
    clock.now -= FORGET_S
    assert not struck_out(strikes, ROW)


def test_memory_of_failures_is_bounded_and_loses_the_oldest() -> None:
    strikes = Strikes(Clock())
    for _ in range(MOST):
        strikes.failed(ROW)
    for number in range(KEPT):
        strikes.failed(RowRequest(Row((number,)), "flood"))
    assert not struck_out(strikes, ROW)


@pytest.mark.anyio
@pytest.mark.parametrize("words", [None, WORDS], ids=["text", "labels"])
async def test_poison_asked_again_and_again_is_refused_and_its_neighbours_are_not(
    llama: Backbone, words: dict[str, tuple[str, ...]] | None
) -> None:
    prompt = make_prompt(llama, TEMPLATES[0], words=words)
    async with serving(llama) as service:
        poison = service.backbone.tokenizer.encode_text(" zebra")[-1]
        honest = service._engine.runner.prefill

        def breaking(start: int, items: object) -> object:
            if any(poison in item.row.ids for item in items):  # type: ignore[attr-defined]
                raise RuntimeError("a kernel does not like this")
            return honest(start, items)  # type: ignore[arg-type]

        service._engine.runner.prefill = breaking  # type: ignore[method-assign,assignment]

        async def ask(text: str) -> str:
            return (await service.answer(prompt, {"text": text}, decoding=Decoding(max_tokens=2), timeout_s=60)).text

        for _ in range(MOST):
            with pytest.raises(EngineFailure):
                await ask("a zebra")
        with pytest.raises(Quarantined, match="3 times"):
            await ask("a zebra")
        with pytest.raises(EngineFailure):
            await ask("one zebra")
        await ask("a horse")
