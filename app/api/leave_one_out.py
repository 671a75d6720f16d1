"""What each virtual token of a version is worth: the version's score on labelled rows, and without each of them.

What is left of a version answers through the engine as a version does, one after the other, so that other callers' rows
run beside these. Nothing of it is kept.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from app.api.asking import Places, ask_in_parts
from app.api.auth.account import count_answer, count_unanswered
from app.backbone import Verbalizer, encode_answer
from app.backbone.leaving_out import Place, loaded_without, places_of, slot_of
from app.engine import Answer, Ask
from app.training.examples import sample_rows
from app.training.metrics import accuracy, exact_match, macro_f1, rouge_l
from app.training.planning import check_rows
from prompt_store.models import Metric, TaskSpec

if TYPE_CHECKING:
    from app.api.services import Services
    from app.backbone import LoadedPrompt
    from app.training import RowSet
    from app.training.data import Example

SAMPLE_LABELS, SAMPLE_TEXTS = 200, 32
"""Rows looked at unless the request says: label tasks, and free text, which must be written."""


@dataclass(frozen=True)
class Worth:
    """A prompt on the rows: `score` by the task's metric, mean `loss` of a row's label, or of an answer's token."""

    score: float
    loss: float


@dataclass(frozen=True)
class LeftOut:
    """The version without one virtual token; `slot` is None on an encoder-decoder's decoder side."""

    place: Place
    slot: int | None
    worth: Worth


@dataclass(frozen=True)
class LeaveOneOut:
    """`rows` were looked at; `whole` is the version as it is."""

    metric: Metric
    rows: int
    whole: Worth
    without: list[LeftOut]


async def leave_one_out(
    services: Services, prompt: LoadedPrompt, spec: TaskSpec, rows: RowSet, *, sample: int | None, timeout_s: float
) -> LeaveOneOut:
    """Each virtual token of the prompt left out in turn.

    Raises InvalidDataset for rows that are not the task's, DeadlineExceeded, and what keeps a row from its answer.
    """
    check_rows(rows, spec)
    limit = sample or (SAMPLE_TEXTS if spec.labels is None else SAMPLE_LABELS)
    judging = _Judging(services, spec.metric, sample_rows(rows.examples, limit, seed=0), time.monotonic() + timeout_s)
    whole = await judging.judge(prompt)
    without = []
    for place in places_of(prompt.learned):
        shorter = loaded_without(prompt, place)
        try:
            worth = await judging.judge(shorter)
        finally:
            services.engine.release(shorter.digest)
        without.append(LeftOut(place, slot_of(prompt.template, place), worth))
    return LeaveOneOut(spec.metric, len(judging.examples), whole, without)


@dataclass
class _Judging:
    services: Services
    metric: Metric
    examples: Sequence[Example]
    deadline: float

    def __post_init__(self) -> None:
        self._places = Places(self.services.settings)

    async def judge(self, prompt: LoadedPrompt) -> Worth:
        if prompt.verbalizer is not None:
            return self._labels(await self._answers([Ask(prompt, e.fields, prompt.decoding) for e in self.examples]))
        return await self._texts(prompt)

    def _labels(self, answers: Sequence[Answer]) -> Worth:
        expected = [str(example.label) for example in self.examples]
        loss = sum(_surprise(answer, label) for answer, label in zip(answers, expected, strict=True)) / len(expected)
        if self.metric == "loss":
            return Worth(loss, loss)
        judge = macro_f1 if self.metric == "macro_f1" else accuracy
        return Worth(judge(expected, [str(answer.label) for answer in answers]), loss)

    async def _texts(self, prompt: LoadedPrompt) -> Worth:
        outputs = [str(example.output) for example in self.examples]
        only = [self._only(prompt, output) for output in outputs]
        scored = await self._answers(
            [Ask(one, example.fields, prompt.decoding) for one, example in zip(only, self.examples, strict=True)]
        )
        tokens = sum(one.verbalizer.longest for one in only if one.verbalizer is not None)
        loss = -sum(next(iter((answer.log_scores or {}).values())) for answer in scored) / tokens
        if self.metric == "loss":
            return Worth(loss, loss)
        greedy = prompt.decoding.model_copy(update={"temperature": 0.0})
        written = await self._answers([Ask(prompt, example.fields, greedy) for example in self.examples])
        judge = rouge_l if self.metric == "rouge_l" else exact_match
        found = [judge(output, answer.text) for output, answer in zip(outputs, written, strict=True)]
        return Worth(sum(found) / len(found), loss)

    def _only(self, prompt: LoadedPrompt, output: str) -> LoadedPrompt:
        """As if the row's own answer were the only label: its score is the answer's log-probability."""
        tokenizer = self.services.engine.backbone.tokenizer
        ids = encode_answer(tokenizer, prompt.template, output)
        return replace(
            prompt,
            verbalizer=Verbalizer(("answer",), ((output,),), ((ids,),), True, apart=tokenizer.family != "causal"),
        )

    async def _answers(self, asks: Sequence[Ask]) -> list[Answer]:
        """Of every row, or the failure of the first that failed. What was answered counts in either case."""
        size = self.services.settings.max_rows
        try:
            found = await ask_in_parts(self.services.engine, asks, self._places, size=size, deadline=self.deadline)
        except asyncio.CancelledError as left:
            for ask in asks:
                count_unanswered(left, ask.input, [ask.prompt])
            raise
        answers = [outcome for outcome in found if isinstance(outcome, Answer)]
        if answers:
            prompt = asks[0].prompt
            count_answer(f"{prompt.task}@{prompt.version}", sum(answer.usage.total_tokens for answer in answers))
        failures = [(ask, outcome) for ask, outcome in zip(asks, found, strict=True) if isinstance(outcome, Exception)]
        for ask, failure in failures:
            count_unanswered(failure, ask.input, [ask.prompt])
        if failures:
            raise failures[0][1]
        return answers


def _surprise(answer: Answer, label: str) -> float:
    """-log p(label), among the labels."""
    scores = answer.log_scores or {}
    peak = max(scores.values())
    total = math.log(sum(math.exp(score - peak) for score in scores.values())) + peak
    return total - scores[label]
