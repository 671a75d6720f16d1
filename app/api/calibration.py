"""Label answers after contextual calibration: what a prompt prefers when asked about nothing, found once per version.

The log-probabilities of the content-free inputs depend on the version's bytes alone, so they are kept by digest. Many
requests that meet a new digest at once wait for one computation, which goes on when any of them leaves.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import TYPE_CHECKING

from app.backbone.calibration import Floats, calibrate, content_free_inputs, content_free_prior
from app.engine import Answer, Ask
from app.engine.answers import label_answer
from app.errors import DeadlineExceeded, InvalidRequest

if TYPE_CHECKING:
    from app.backbone import LoadedPrompt
    from app.engine import EngineService

CAPACITY = 4096
"""Versions whose log-probabilities are kept, the most recently used ones: 8 bytes for each label of each."""


class Calibrator:
    """`timeout_s` bounds the computation of one version, whoever waits for it."""

    def __init__(self, engine: EngineService, *, timeout_s: float, capacity: int = CAPACITY) -> None:
        self._engine, self._timeout_s, self._capacity = engine, timeout_s, capacity
        self._known: OrderedDict[str, Floats] = OrderedDict()
        self._finding: dict[str, asyncio.Task[Floats]] = {}

    async def apply(self, prompt: LoadedPrompt, answer: Answer, *, timeout_s: float) -> Answer:
        """The answer with calibrated scores, and the label that they favour.

        Raises DeadlineExceeded if the content-free inputs are not answered in time, or what kept them from it.
        """
        assert answer.log_scores is not None
        prior = await self._prior(prompt, timeout_s)
        scores = calibrate(list(answer.log_scores.values()), prior)
        return label_answer(tuple(answer.log_scores), scores.tolist(), answer.usage)

    async def _prior(self, prompt: LoadedPrompt, timeout_s: float) -> Floats:
        """log p_cf [K] of a label prompt."""
        known = self._known.get(prompt.digest)
        if known is not None:
            self._known.move_to_end(prompt.digest)
            return known
        finding = self._finding.get(prompt.digest)
        if finding is None:
            finding = self._finding[prompt.digest] = asyncio.create_task(self._find(prompt), name="calibrate")
            finding.add_done_callback(lambda done: self._end(prompt.digest, done))
        try:
            return await asyncio.wait_for(asyncio.shield(finding), timeout_s)
        except TimeoutError:
            raise DeadlineExceeded("the deadline passed before the calibration was there", param="timeout_s") from None

    async def _find(self, prompt: LoadedPrompt) -> Floats:
        asks = [Ask(prompt, fields, prompt.decoding) for fields in content_free_inputs(prompt.template.fields)]
        scores: list[list[float]] = []
        refused: InvalidRequest | None = None
        for answer in await self._engine.answer_together(asks, timeout_s=self._timeout_s):
            if isinstance(answer, InvalidRequest):  # nothing but the empty text, and a row needs one token
                refused = answer
            elif isinstance(answer, Exception):
                raise answer
            else:
                assert answer.log_scores is not None
                scores.append(list(answer.log_scores.values()))
        if not scores:
            raise refused or AssertionError("an answer for each input")
        return content_free_prior(scores)

    def _end(self, digest: str, done: asyncio.Task[Floats]) -> None:
        del self._finding[digest]
        if done.cancelled() or done.exception() is not None:  # who waits hears of it, the next request tries again
            return
        self._known[digest] = done.result()
        if len(self._known) > self._capacity:
            self._known.popitem(last=False)
