"""The calibrator: one computation for each version, whoever asks, whoever leaves."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence

import pytest

from app.api.calibration import Calibrator
from app.backbone import Verbalizer
from app.engine import Answer, Ask, Usage
from app.engine.answers import label_answer
from app.errors import ChorusError, DeadlineExceeded, InvalidRequest, Overloaded
from tests.fakes import fake_prompt

pytestmark = pytest.mark.anyio
LABELS = Verbalizer(("a", "b"), ((" a",), (" b",)), (((1,),), ((2,),)), terminated=False)
USAGE = Usage(3, 0, 2)
EMPTY = {"N/A": (0.9, 0.1), "": (0.6, 0.4), "[MASK]": (0.3, 0.7)}  # mean 0.6, 0.4


class Engine:
    """Answers content-free inputs as `EMPTY` says, once `gate` is open; `refuse` answers in its stead."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.gate = asyncio.Event()
        self.refuse: dict[str, ChorusError] = {}

    async def answer_together(self, asks: Sequence[Ask], *, timeout_s: float) -> list[Answer | ChorusError]:
        self.asked.append(asks[0].prompt.digest)
        await self.gate.wait()
        return [self.refuse.get(ask.input["text"]) or label(*EMPTY[ask.input["text"]]) for ask in asks]


def label(first: float, second: float) -> Answer:
    return label_answer(LABELS.labels, [math.log(first) - 5, math.log(second) - 5], USAGE)


@pytest.fixture
async def engine() -> Engine:
    engine = Engine()
    engine.gate.set()
    return engine


def calibrator(engine: Engine, capacity: int = 8) -> Calibrator:
    return Calibrator(engine, timeout_s=5, capacity=capacity)  # type: ignore[arg-type]


async def test_apply_divides_by_the_mean_of_the_content_free_probabilities(engine: Engine) -> None:
    answer = await calibrator(engine).apply(fake_prompt(1, verbalizer=LABELS), label(0.5, 0.5), timeout_s=5)
    # 0.5 / 0.6 against 0.5 / 0.4: shares 0.4 and 0.6
    assert answer.scores == pytest.approx({"a": 0.4, "b": 0.6})
    assert (answer.label, answer.text, answer.finish_reason, answer.usage) == ("b", "b", "label", USAGE)


async def test_many_at_once_wait_for_one_computation_and_later_ones_for_none(engine: Engine) -> None:
    engine.gate.clear()
    shared = calibrator(engine)
    waiting = [
        asyncio.create_task(shared.apply(fake_prompt(1, verbalizer=LABELS), label(0.5, 0.5), timeout_s=5))
        for _ in range(9)
    ]
    await asyncio.sleep(0)
    waiting.pop().cancel()  # the one that leaves takes nothing with it
    engine.gate.set()
    answers = await asyncio.gather(*waiting)
    answers.append(await shared.apply(fake_prompt(1, verbalizer=LABELS), label(0.5, 0.5), timeout_s=5))
    assert {answer.label for answer in answers} == {"b"}
    assert len(engine.asked) == 1


async def test_first_that_leaves_does_not_end_the_computation_for_the_others(engine: Engine) -> None:
    engine.gate.clear()
    shared = calibrator(engine)
    first = asyncio.create_task(shared.apply(fake_prompt(1, verbalizer=LABELS), label(0.5, 0.5), timeout_s=5))
    second = asyncio.create_task(shared.apply(fake_prompt(1, verbalizer=LABELS), label(0.5, 0.5), timeout_s=5))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait({first})
    engine.gate.set()
    assert (await second).label == "b"
    assert len(engine.asked) == 1


async def test_deadline_that_passes_meanwhile_is_the_waiters_own(engine: Engine) -> None:
    engine.gate.clear()
    shared = calibrator(engine)
    with pytest.raises(DeadlineExceeded):
        await shared.apply(fake_prompt(1, verbalizer=LABELS), label(0.5, 0.5), timeout_s=0.01)
    engine.gate.set()
    assert (await shared.apply(fake_prompt(1, verbalizer=LABELS), label(0.5, 0.5), timeout_s=5)).label == "b"
    assert len(engine.asked) == 1


async def test_failure_reaches_who_waits_and_is_not_kept(engine: Engine) -> None:
    engine.refuse[""] = Overloaded("full")
    shared = calibrator(engine)
    with pytest.raises(Overloaded):
        await shared.apply(fake_prompt(1, verbalizer=LABELS), label(0.5, 0.5), timeout_s=5)
    engine.refuse.clear()
    assert (await shared.apply(fake_prompt(1, verbalizer=LABELS), label(0.5, 0.5), timeout_s=5)).label == "b"


async def test_input_that_comes_out_empty_is_left_out_of_the_mean(engine: Engine) -> None:
    engine.refuse[""] = InvalidRequest("an empty row")
    answer = await calibrator(engine).apply(fake_prompt(1, verbalizer=LABELS), label(0.6, 0.4), timeout_s=5)
    assert answer.scores == pytest.approx({"a": 0.5, "b": 0.5})  # the mean of 0.9 and 0.3 is 0.6


async def test_least_recently_used_version_is_forgotten_first(engine: Engine) -> None:
    small = calibrator(engine, capacity=2)
    for version in (1, 2, 1, 3, 1, 2):
        await small.apply(fake_prompt(version, verbalizer=LABELS), label(0.5, 0.5), timeout_s=5)
    assert [int(digest, 16) for digest in engine.asked] == [1, 2, 3, 2]
