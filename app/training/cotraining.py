"""The training loop: any number of prompts learn in the same forwards and backwards over one frozen model.

Each run has rows, template, words, length, learning rate, schedule, seed, optimiser and end of its own (`runs.py`); all
it shares is the model and the batch, so learning together gives what learning alone gives. The loop saves what it needs
to go on after a kill, on the CPU bit for bit, and knows neither Redis nor the registry.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from app.backbone import Backbone
from app.training.checkpoints import Checkpoints
from app.training.gradients import Fill, Lesson, accumulate
from app.training.memory import Budget
from app.training.runs import Interrupted, Run, under

MICRO_TOKENS = 2048
"""Tokens of one forward and backward, padding included; a larger batch is taken in parts, with the same result."""

Prune = Callable[[Sequence[Run]], None]
"""Called behind every step with all runs; may end some of them (`Run.prune`)."""


class Watcher(Protocol):
    """Who hears what the loop does, and may end it. Nothing here may raise for reasons of its own."""

    def stop_requested(self) -> bool: ...
    def began(self, step: int) -> None: ...
    def saved(self, step: int) -> None: ...
    def warned(self, message: str) -> None: ...


class CoTrainer:
    """Trains `runs` together. `checkpoint_s`: time between two checkpoints."""

    def __init__(
        self,
        backbone: Backbone,
        runs: Sequence[Run],
        *,
        watcher: Watcher,
        checkpoints: Checkpoints,
        checkpoint_s: float,
        prune: Prune | None = None,
        budget: Budget | None = None,
        fill: Fill | None = None,
    ) -> None:
        self.runs = runs
        self._backbone = backbone
        self._watcher = watcher
        self._checkpoints = checkpoints
        self._checkpoint_s = checkpoint_s
        self._prune = prune
        self._fill = fill
        self._budget = Budget(MICRO_TOKENS) if budget is None else budget

    def run(self) -> None:
        """Train every run to its end, from the newest checkpoint if there is one.

        A run that diverges ends alone; its outcome says so. Raises Interrupted when the watcher wants to stop.
        """
        self._resume()
        self._watcher.began(self._step_number)
        last_saved = time.monotonic()
        while active := [run for run in self.runs if not run.place.done]:
            began = time.monotonic()
            self._step(active)
            if self._prune is not None:
                self._prune(self.runs)
            for run in active:
                run.place.seconds += time.monotonic() - began
            done = all(run.place.done for run in self.runs)
            stopping = self._watcher.stop_requested()
            if done or stopping or time.monotonic() - last_saved >= self._checkpoint_s:
                self._save()
                last_saved = time.monotonic()
            if stopping and not done:
                raise Interrupted

    @property
    def _step_number(self) -> int:
        return max(run.place.step for run in self.runs)

    def _step(self, active: Sequence[Run]) -> None:
        batches = [run.next_batch() for run in active]
        while True:
            try:
                lessons = [
                    Lesson(run.prompt(), rows, run.verbalizer) for run, rows in zip(active, batches, strict=True)
                ]
                losses = accumulate(self._backbone, lessons, tokens=self._budget.tokens, fill=self._fill)
                break
            except torch.OutOfMemoryError:
                for run in active:
                    run.forget_gradients()
                told = self._budget.shrink(self._backbone, max(one.length for rows in batches for one in rows))
                if told is None:
                    raise
                torch.cuda.empty_cache()
                self._watcher.warned(told)
        for run, loss in zip(active, losses, strict=True):
            run.take_step(loss)

    def _save(self) -> None:
        tensors: dict[str, Tensor] = {}
        told: list[dict[str, Any]] = []
        for i, run in enumerate(self.runs):
            of, what = run.state()
            tensors |= {f"{i}.{name}": tensor for name, tensor in of.items()}
            told.append(what)
        step = self._step_number
        try:
            self._checkpoints.save(step, tensors, {"runs": told})
        except OSError as error:
            self._watcher.warned(f"the checkpoint of step {step} could not be written: {error.strerror}")
        else:
            self._watcher.saved(step)

    def _resume(self) -> None:
        found = self._checkpoints.load()
        if found is None:
            return
        tensors, state = found
        for i, (run, told) in enumerate(zip(self.runs, state["runs"], strict=True)):
            run.load(under(f"{i}.", tensors), told)
