"""The training loop: over the prompt's parameters only, through the frozen backbone.

It keeps the best prompt by the task's metric, stops early, saves what it needs to go on after a kill, and knows
neither Redis nor the registry. On the CPU a resumed run continues bit for bit.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from app.backbone import Backbone, SoftPrompt, Verbalizer
from app.backbone.soft_prompt import map_parts, to_tensors
from app.errors import ChorusError
from app.training.checkpoints import Checkpoints
from app.training.examples import Batches, Encoded
from app.training.methods.base import Learner, load_state, state_of
from app.training.objective import loss_sums
from app.training.schedule import PATIENCE, Schedule

CLIP_NORM = 1.0
BAD_STEPS = 3
"""Steps in a row without a finite loss after which a run has diverged."""

MICRO_TOKENS = 2048
"""Tokens of one forward and backward, padding included; a larger batch is taken in parts, with the same result."""


class Diverged(ChorusError):
    code = "diverged"


class Interrupted(Exception):
    """The run was asked to stop and has saved its place."""


@dataclass(frozen=True)
class Judgement:
    """A prompt on the dev rows: `score` by the task's metric, `loss` to decide between equal scores."""

    score: float
    loss: float
    lower_is_better: bool = False

    @property
    def rank(self) -> tuple[float, float]:
        return (-self.score if self.lower_is_better else self.score, -self.loss)


Judge = Callable[[SoftPrompt], Judgement]
"""Judges a prompt, float32 on the backbone's device."""


class Listener(Protocol):
    """Who hears what the loop does. Nothing here may raise for reasons of its own."""

    def stop_requested(self) -> bool: ...
    def began(self, step: int) -> None: ...
    def stepped(self, step: int, loss: float, best: Judgement | None) -> None: ...
    def evaluated(self, step: int, judgement: Judgement, *, best: bool) -> None: ...
    def saved(self, step: int) -> None: ...
    def warned(self, message: str) -> None: ...


@dataclass(frozen=True)
class Outcome:
    """The best prompt of a finished run. `tensors` are the blob's, folded."""

    tensors: dict[str, Tensor]
    judgement: Judgement
    best_step: int
    steps: int
    seconds: float
    stopped_early: bool


@dataclass
class _Place:
    """Where a run is; all of it goes into a checkpoint."""

    step: int = 0
    bad_steps: int = 0
    stale_evaluations: int = 0
    lowest_loss: float = sys.float_info.max
    seconds: float = 0.0
    done: bool = False
    stopped_early: bool = False
    best_step: int = -1
    best: Judgement | None = None
    best_tensors: dict[str, Tensor] = field(default_factory=dict)


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
    ) -> None:
        self._backbone = backbone
        self._learner = learner
        self._examples = examples
        self._verbalizer = verbalizer
        self._schedule = schedule
        self._judge = judge
        self._listener = listener
        self._checkpoints = checkpoints
        self._checkpoint_s = checkpoint_s
        self._peaks = learner.learning_rates(schedule.learning_rate)
        self._parameters = dict(learner.named_parameters())
        self._optimizer = torch.optim.AdamW(
            [{"params": [parameter], "name": name} for name, parameter in self._parameters.items()], weight_decay=0.0
        )
        self._micro_tokens = MICRO_TOKENS
        self._place = _Place()

    @property
    def peak_rate(self) -> float:
        """Peak learning rate of the prompt's own parameter, the learner's first."""
        return self._peaks[next(iter(self._parameters))]

    def run(self) -> Outcome:
        """Train to the end, from the newest checkpoint if there is one.

        Raises Interrupted when the listener wants to stop, Diverged when the loss is not finite again and again.
        """
        self._resume()
        self._listener.began(self._place.step)
        started = last_saved = time.monotonic()
        before = self._place.seconds
        batches = self._batches()
        while not self._place.done:
            self._advance(next(batches))
            self._place.seconds = before + time.monotonic() - started
            stopping = self._listener.stop_requested()
            if self._place.done or stopping or time.monotonic() - last_saved >= self._checkpoint_s:
                self._save()
                last_saved = time.monotonic()
            if stopping and not self._place.done:
                raise Interrupted
        return self._outcome()

    def _batches(self) -> Iterator[list[Encoded]]:
        lengths = tuple(one.length for one in self._examples)
        order = Batches(lengths, self._schedule.batch_size, self._schedule.seed)
        for places in order.from_step(self._place.step):
            yield [self._examples[place] for place in places]

    def _advance(self, batch: Sequence[Encoded]) -> None:
        place = self._place
        loss = self._step(batch)
        if loss is None:
            place.bad_steps += 1
            self._listener.warned(f"step {place.step + 1}: the loss is not finite; the step is left out")
            if place.bad_steps >= BAD_STEPS:
                raise Diverged(f"the loss was not finite {BAD_STEPS} steps in a row; try a smaller learning rate")
        else:
            place.bad_steps = 0
        place.step += 1
        if loss is not None:
            self._listener.stepped(place.step, loss, place.best)
        last = place.step >= self._schedule.steps
        if last or place.step % self._schedule.evaluate_every == 0:
            self._evaluate()
        place.stopped_early = not last and place.stale_evaluations >= PATIENCE
        place.done = last or place.stopped_early

    def _step(self, batch: Sequence[Encoded]) -> float | None:
        """One optimiser step; the mean loss, or None if it or its gradient was not finite and nothing was changed."""
        share = self._schedule.rate(self._place.step)
        for group in self._optimizer.param_groups:
            group["lr"] = self._peaks[group["name"]] * share
        loss = self._gradients(batch)
        norm = torch.nn.utils.clip_grad_norm_(self._parameters.values(), CLIP_NORM)
        finite = math.isfinite(loss) and bool(torch.isfinite(norm))
        if finite:
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return loss if finite else None

    def _gradients(self, batch: Sequence[Encoded]) -> float:
        """Sum up the gradients of the batch's mean loss, in parts that fit; return that loss."""
        while True:
            try:
                return self._gradients_in_parts(batch)
            except torch.OutOfMemoryError:
                self._optimizer.zero_grad(set_to_none=True)
                if self._micro_tokens <= max(one.length for one in batch):
                    raise
                torch.cuda.empty_cache()
                self._micro_tokens //= 2
                self._listener.warned(f"out of memory: {self._micro_tokens} tokens at a time from now on")

    def _gradients_in_parts(self, batch: Sequence[Encoded]) -> float:
        terms = sum(len(one.answer) or 1 for one in batch)
        total = 0.0
        for part in parts(batch, self._micro_tokens):
            loss, _ = loss_sums(self._backbone, self._verbalizer, self._learner.prompt(), part)
            (loss / terms).backward()
            total += float(loss.detach())
        return total / terms

    def _evaluate(self) -> None:
        place = self._place
        with torch.no_grad():
            prompt = map_parts(self._learner.prompt(), Tensor.detach)
            judgement = self._judge(prompt)
        better = math.isfinite(judgement.loss) and (place.best is None or judgement.rank > place.best.rank)
        if better:
            place.best, place.best_step = judgement, place.step
            on_host = map_parts(prompt, lambda part: part.to("cpu", torch.float32, copy=True))
            place.best_tensors = to_tensors(on_host)
        # A falling loss is progress too: the score of a few hundred rows moves in steps, and by chance.
        place.stale_evaluations = 0 if better or judgement.loss < place.lowest_loss else place.stale_evaluations + 1
        place.lowest_loss = min(place.lowest_loss, judgement.loss)
        self._listener.evaluated(place.step, judgement, best=better)

    def _outcome(self) -> Outcome:
        place = self._place
        if place.best is None:
            raise Diverged("no evaluation gave a finite loss; try a smaller learning rate")
        return Outcome(place.best_tensors, place.best, place.best_step, place.step, place.seconds, place.stopped_early)

    def _save(self) -> None:
        tensors = {f"parameter.{name}": tensor for name, tensor in state_of(self._learner).items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self._place.best_tensors.items()}
        tensors["random"] = torch.get_rng_state()
        for name, parameter in self._parameters.items():
            for key, value in self._optimizer.state[parameter].items():
                tensors[f"adam.{name}.{key}"] = value
        place = self._place
        state: dict[str, Any] = {
            name: getattr(place, name)
            for name in (
                *("bad_steps", "stale_evaluations", "lowest_loss"),
                *("seconds", "done", "stopped_early", "best_step"),
            )
        }
        if place.best is not None:
            state["best"] = [place.best.score, place.best.loss, place.best.lower_is_better]
        try:
            self._checkpoints.save(place.step, tensors, state)
        except OSError as error:
            self._listener.warned(f"the checkpoint of step {place.step} could not be written: {error.strerror}")
        else:
            self._listener.saved(place.step)

    def _resume(self) -> None:
        torch.manual_seed(self._schedule.seed)
        found = self._checkpoints.load()
        if found is None:
            return
        tensors, state = found
        device = self._backbone.device
        load_state(self._learner, _under("parameter.", tensors))
        for name, parameter in self._parameters.items():
            moments = _under(f"adam.{name}.", tensors)
            if moments:
                self._optimizer.state[parameter] = {
                    key: value if key == "step" else value.to(device) for key, value in moments.items()
                }
        torch.set_rng_state(tensors["random"])
        best = state.pop("best", None)
        self._place = _Place(
            **{name: value for name, value in state.items() if name != "identity"},
            best=Judgement(*best) if best else None,
            best_tensors=_under("best.", tensors),
        )


def parts(batch: Sequence[Encoded], tokens: int) -> list[list[Encoded]]:
    """The batch in pieces of at most `tokens` tokens, padding included, and at least one row."""
    pieces: list[list[Encoded]] = []
    for one in sorted(batch, key=lambda one: one.length):
        if pieces and (len(pieces[-1]) + 1) * one.length <= tokens:
            pieces[-1].append(one)
        else:
            pieces.append([one])
    return pieces


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
