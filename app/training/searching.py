"""The second way to a version: templates are judged instead of vectors learned, within a budget.

A search is a function of its judgements. So a checkpoint holds those alone, and a search that goes on after a kill runs
anew from its beginning, is given what it was told before, and comes to where it was.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from app.backbone import Template
from app.errors import ContextTooLong
from app.training.checkpoints import Checkpoints
from app.training.data import Example
from app.training.evaluate import Evaluator
from app.training.methods import MethodConfig, SearchedMethod
from app.training.runs import Diverged, Interrupted, Judgement, Outcome
from app.training.trainer import Listener

_WORST = (float("-inf"), float("-inf"))


class _BudgetSpent(Exception):
    """Ends a search from within."""


class Search:
    """One search, of one attempt. `template` has no slots; `examples` are the training rows."""

    def __init__(
        self,
        method: SearchedMethod,
        config: MethodConfig,
        template: Template,
        examples: Sequence[Example],
        dev: Sequence[Example],
        evaluator: Evaluator,
        *,
        listener: Listener,
        checkpoints: Checkpoints,
        checkpoint_s: float,
    ) -> None:
        self.template = template
        self.rows: Sequence[tuple[str, str | None]] = [
            (" ".join(example.fields.values()), example.label) for example in examples
        ]
        verbalizer = evaluator.encoder.verbalizer
        self.label_words: Sequence[str] = [] if verbalizer is None else [word for of in verbalizer.words for word in of]
        self._method = method
        self._config = config
        self._dev = dev
        self._evaluator = evaluator
        self._listener = listener
        self._checkpoints = checkpoints
        self._checkpoint_s = checkpoint_s
        self._budget = method.evaluations(config)
        self._told: dict[str, Judgement] = {}  # of earlier attempts
        self._seconds = 0.0
        self._judged: dict[str, Judgement] = {}
        self._best: tuple[int, Template, Judgement] | None = None

    def run(self) -> tuple[Outcome, Template]:
        """Judge until the method is done or the budget used up; the best template, the first among equals.

        Raises Interrupted when the listener wants to stop, Diverged when no template could be judged.
        """
        self._resume()
        self._began = self._saved = time.monotonic()
        self._listener.began(len(self._told))
        with suppress(_BudgetSpent):
            self._method.search(self._config, self)
        self._save()
        if self._best is None:
            raise Diverged("no template fits the context")
        step, template, judgement = self._best
        seconds = self._seconds + time.monotonic() - self._began
        return Outcome({}, judgement, step, len(self._judged), seconds, stopped_early=False), template

    def judge(self, template: Template) -> tuple[float, float]:
        """Rank on the dev rows."""
        known = self._judged.get(template.source)
        if known is not None:
            return known.rank
        if len(self._judged) >= self._budget:
            raise _BudgetSpent
        judgement = self._told.get(template.source) or self._evaluate(template)
        if judgement is None:
            return _WORST
        self._judged[template.source] = judgement
        better = self._best is None or judgement.rank > self._best[2].rank
        step = len(self._judged)
        if better:
            self._best = (step, template, judgement)
        if template.source not in self._told:
            self._tell(step, judgement, better=better)
        return judgement.rank

    def _evaluate(self, template: Template) -> Judgement | None:
        encoder = replace(self._evaluator.encoder, template=template)
        try:
            return replace(self._evaluator, encoder=encoder).quick_judge(self._dev)(None)
        except ContextTooLong as error:
            self._listener.warned(f"left out: {error.message}")
            return None

    def _tell(self, step: int, judgement: Judgement, *, better: bool) -> None:
        assert self._best is not None
        self._listener.stepped(step, judgement.loss, self._best[2])
        self._listener.evaluated(step, judgement, best=better)
        stopping = self._listener.stop_requested()
        if stopping or time.monotonic() - self._saved >= self._checkpoint_s:
            self._save()
            self._saved = time.monotonic()
        if stopping:
            raise Interrupted

    def _save(self) -> None:
        judged = [[source, one.score, one.loss, one.lower_is_better] for source, one in self._judged.items()]
        seconds = self._seconds + time.monotonic() - self._began
        try:
            self._checkpoints.save(len(judged), {}, {"judged": judged, "seconds": seconds})
        except OSError as error:
            self._listener.warned(f"the checkpoint of step {len(judged)} could not be written: {error.strerror}")
        else:
            self._listener.saved(len(judged))

    def _resume(self) -> None:
        found = self._checkpoints.load()
        if found is not None:
            _, state = found
            self._told = {source: Judgement(*of) for source, *of in state["judged"]}
            self._seconds = state["seconds"]
