"""One prompt that learns alone: co-training with a single run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from app.backbone import Backbone, Verbalizer
from app.training.checkpoints import Checkpoints
from app.training.cotraining import CoTrainer, Watcher
from app.training.examples import Encoded
from app.training.gradients import Fill
from app.training.memory import Budget
from app.training.methods.base import Learner
from app.training.runs import Diverged, Interrupted, Judge, Judgement, Outcome, Run
from app.training.runs import Listener as RunListener
from app.training.schedule import Schedule

__all__ = ["Diverged", "Interrupted", "Judge", "Judgement", "Listener", "Outcome", "Trainer"]


class Listener(Watcher, RunListener, Protocol):
    """Who hears what the loop and its one run do."""


class Trainer:
    """One run. `checkpoint_s`: time between two checkpoints."""

    def __init__(
        self,
        backbone: Backbone,
        learner: Learner,
        examples: Sequence[Encoded],
        verbalizer: Verbalizer | None,
        schedule: Schedule,
        *,
        judge: Judge,
        listener: Listener,
        checkpoints: Checkpoints,
        checkpoint_s: float,
        budget: Budget | None = None,
        fill: Fill | None = None,
    ) -> None:
        self._run = Run(learner, examples, verbalizer, schedule, judge=judge, listener=listener)
        self._loop = CoTrainer(
            backbone,
            [self._run],
            watcher=listener,
            checkpoints=checkpoints,
            checkpoint_s=checkpoint_s,
            budget=budget,
            fill=fill,
        )

    @property
    def peak_rate(self) -> float:
        """Peak learning rate of the prompt's own parameter, the learner's first."""
        return self._run.peak_rate

    def run(self) -> Outcome:
        """Train to the end, from the newest checkpoint if there is one.

        Raises Interrupted when the listener wants to stop, Diverged when the loss is not finite again and again.
        """
        self._loop.run()
        return self._run.outcome
