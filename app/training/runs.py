"""One run among those that learn together: its learner, its order of rows, its optimiser, its place, its best prompt.

A run knows neither the others nor the backbone's forward: it is handed the gradient of its own mean loss, and takes a
step of its own. So what it does is the same whether it learns alone or in company.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from app.backbone import SoftPrompt, Verbalizer
from app.backbone.soft_prompt import map_parts, to_tensors
from app.errors import ChorusError
from app.training.examples import Batches, Encoded
from app.training.methods.base import Learner, load_state, state_of
from app.training.schedule import PATIENCE, Schedule

CLIP_NORM = 1.0
BAD_STEPS = 3
"""Steps in a row without a finite loss after which a run has diverged."""


class Diverged(ChorusError):
    code = "diverged"


class Interrupted(Exception):
    """The run was asked to stop and has saved its place."""


@dataclass(frozen=True)
class Judgement:
    """A prompt on the dev rows: `score` by the task's metric, `loss` to decide between equal scores. `refusal`: why no
    replica would load it; such a prompt is never the best."""

    score: float
    loss: float
    lower_is_better: bool = False
    refusal: str = ""

    @property
    def rank(self) -> tuple[float, float]:
        return (-self.score if self.lower_is_better else self.score, -self.loss)


Judge = Callable[[SoftPrompt], Judgement]
"""Judges a prompt, float32 on the backbone's device."""


class Listener(Protocol):
    """Who hears what one run does. Nothing here may raise for reasons of its own."""

    def stepped(self, step: int, loss: float, best: Judgement | None) -> None: ...
    def evaluated(self, step: int, judgement: Judgement, *, best: bool) -> None: ...
    def warned(self, message: str) -> None: ...


@dataclass(frozen=True)
class Outcome:
    """The best prompt of a finished run. `tensors` are the blob's, folded; `details` are for the version's card."""

    tensors: dict[str, Tensor]
    judgement: Judgement
    best_step: int
    steps: int
    seconds: float
    stopped_early: bool
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Place:
    """Where a run is; all of it goes into a checkpoint. `pruned`: ended because others did better."""

    step: int = 0
    bad_steps: int = 0
    stale_evaluations: int = 0
    lowest_loss: float = sys.float_info.max
    seconds: float = 0.0
    done: bool = False
    stopped_early: bool = False
    pruned: bool = False
    best_step: int = -1
    best: Judgement | None = None
    best_tensors: dict[str, Tensor] = field(default_factory=dict)


_SAVED = (
    *("step", "bad_steps", "stale_evaluations", "lowest_loss", "seconds"),
    *("done", "stopped_early", "pruned", "best_step"),
)


class Run:
    """One learner on its rows, by its schedule. `examples` are all rows it learns from."""

    def __init__(
        self,
        learner: Learner,
        examples: Sequence[Encoded],
        verbalizer: Verbalizer | None,
        schedule: Schedule,
        *,
        judge: Judge,
        listener: Listener,
    ) -> None:
        self.verbalizer = verbalizer
        self.schedule = schedule
        self.place = Place()
        self._learner = learner
        self._examples = examples
        self._judge = judge
        self._listener = listener
        self._peaks = learner.learning_rates(schedule.learning_rate)
        self._parameters = dict(learner.named_parameters())
        self._optimizer = torch.optim.AdamW(
            [{"params": [parameter], "name": name} for name, parameter in self._parameters.items()], weight_decay=0.0
        )
        self._random = torch.Generator().manual_seed(schedule.seed).get_state()
        self._batches: Iterator[list[int]] | None = None

    @property
    def peak_rate(self) -> float:
        """Peak learning rate of the prompt's own parameter, the learner's first."""
        return self._peaks[next(iter(self._parameters))]

    @property
    def longest(self) -> int:
        """Tokens of its longest row."""
        return max(one.length for one in self._examples)

    @property
    def error(self) -> Diverged | None:
        """Why an ended run has no outcome."""
        if self.place.bad_steps >= BAD_STEPS:
            return Diverged(f"the loss was not finite {BAD_STEPS} steps in a row; try a smaller learning rate")
        if self.place.done and 0 < self.place.step <= self.place.bad_steps:  # ended early: it has learned nothing
            return Diverged("no step gave a finite loss; try a smaller learning rate")
        if self.place.done and self.place.best is None:
            return Diverged(
                "no evaluation gave a finite loss and vectors that replicas load; try a smaller learning rate"
            )
        return None

    @property
    def outcome(self) -> Outcome:
        """Of an ended run. Raises Diverged."""
        place = self.place
        if self.error is not None:
            raise self.error
        assert place.best is not None
        return Outcome(place.best_tensors, place.best, place.best_step, place.step, place.seconds, place.stopped_early)

    def next_batch(self) -> list[Encoded]:
        """The rows of the step at hand."""
        if self._batches is None:
            lengths = tuple(one.length for one in self._examples)
            order = Batches(lengths, self.schedule.batch_size, self.schedule.seed)
            self._batches = order.from_step(self.place.step)
        return [self._examples[place] for place in next(self._batches)]

    def prompt(self) -> SoftPrompt:
        """The prompt as it is now, differentiable; chance in it is this run's own."""
        outside = torch.get_rng_state()
        torch.set_rng_state(self._random)
        prompt = self._learner.prompt()
        self._random = torch.get_rng_state()
        torch.set_rng_state(outside)
        return prompt

    def take_step(self, loss: float) -> None:
        """One optimiser step on the gradients that lie in the parameters, of mean loss `loss`, then what is due behind
        it: an evaluation, the end. A step whose loss or gradient is not finite changes no parameter."""
        place = self.place
        finite = self._optimize(loss)
        place.bad_steps = 0 if finite else place.bad_steps + 1
        if not finite:
            self._listener.warned(f"step {place.step + 1}: the loss is not finite; the step is left out")
            if place.bad_steps >= BAD_STEPS:
                place.done = True
                return
        place.step += 1
        if finite:
            self._listener.stepped(place.step, loss, place.best)
        last = place.step >= self.schedule.steps
        if last or place.step % self.schedule.evaluate_every == 0:
            self.evaluate()
        place.stopped_early = not last and place.stale_evaluations >= PATIENCE
        place.done = last or place.stopped_early

    def evaluate(self) -> None:
        """Judge the prompt as it is, and keep it if it is the best."""
        place = self.place
        with torch.no_grad():
            prompt = map_parts(self.prompt(), Tensor.detach)
            judgement = self._judge(prompt)
        usable = math.isfinite(judgement.loss) and not judgement.refusal
        better = usable and (place.best is None or judgement.rank > place.best.rank)
        if better:
            place.best, place.best_step = judgement, place.step
            on_host = map_parts(prompt, lambda part: part.to("cpu", torch.float32, copy=True))
            place.best_tensors = to_tensors(on_host)
        # A falling loss is progress too: the score of a few hundred rows moves in steps, and by chance.
        progress = better or (usable and judgement.loss < place.lowest_loss)
        place.stale_evaluations = 0 if progress else place.stale_evaluations + 1
        if usable:
            place.lowest_loss = min(place.lowest_loss, judgement.loss)
        if judgement.refusal:
            self._listener.warned(f"step {place.step}: replicas would refuse this prompt, {judgement.refusal}")
        self._listener.evaluated(place.step, judgement, best=better)

    def prune(self) -> None:
        """End here: others of its kind did better."""
        self.place.done = self.place.pruned = True

    def forget_gradients(self) -> None:
        self._optimizer.zero_grad(set_to_none=True)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors, JSON) of a checkpoint."""
        tensors = {f"parameter.{name}": tensor for name, tensor in state_of(self._learner).items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self.place.best_tensors.items()}
        tensors["random"] = self._random
        for name, parameter in self._parameters.items():
            for key, value in self._optimizer.state[parameter].items():
                tensors[f"adam.{name}.{key}"] = value
        best = self.place.best
        told: dict[str, Any] = {name: getattr(self.place, name) for name in _SAVED}
        return tensors, told | {"best": None if best is None else [best.score, best.loss, best.lower_is_better]}

    def load(self, tensors: Mapping[str, Tensor], told: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        load_state(self._learner, under("parameter.", tensors))
        for name, parameter in self._parameters.items():
            moments = under(f"adam.{name}.", tensors)
            if moments:
                self._optimizer.state[parameter] = {
                    key: value if key == "step" else value.to(parameter.device) for key, value in moments.items()
                }
        self._random = tensors["random"]
        best = told["best"]
        self.place = Place(
            **{name: told[name] for name in _SAVED},
            best=Judgement(*best) if best else None,
            best_tensors=under("best.", tensors),
        )
        self._batches = None

    def _optimize(self, loss: float) -> bool:
        share = self.schedule.rate(self.place.step)
        for group in self._optimizer.param_groups:
            group["lr"] = self._peaks[group["name"]] * share
        norm = torch.nn.utils.clip_grad_norm_(self._parameters.values(), CLIP_NORM)
        finite = math.isfinite(loss) and bool(torch.isfinite(norm))
        if finite:
            self._optimizer.step()
        self.forget_gradients()
        return finite


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, by the rest of their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
