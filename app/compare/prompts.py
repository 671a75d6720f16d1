"""Prompts found by the service's own methods, without a service: the trainer's loop, no registry, no checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from app.compare.budget import Budget
from app.compare.fitted import Fitted
from app.compare.setting import Setting
from app.errors import InvalidPrompt
from app.training.methods import METHODS, LearnedMethod, Learner, MethodConfig, SearchedMethod
from app.training.methods.base import Asked
from app.training.searching import Search
from app.training.surroundings import gather
from app.training.trainer import Trainer

_NEVER_S = 1e9


@dataclass
class OtherTasks:
    """The registry of a comparison: what the other tasks' prompts came to, [P, H] by name."""

    known: Mapping[str, Tensor] = field(default_factory=dict)

    def pin(self, reference: str, param: str) -> str:
        return reference

    def vectors(self, reference: str) -> Tensor:
        if reference not in self.known:
            raise InvalidPrompt(f"{reference} is none of the other tasks' prompts")
        return self.known[reference]

    def decoder_vectors(self, reference: str) -> Tensor | None:
        return None

    def others(self) -> Iterator[tuple[str, Tensor]]:
        yield from self.known.items()


class Silent:
    """Hears everything, says nothing, stops nobody, and keeps no checkpoint."""

    def stop_requested(self) -> bool:
        return False

    def load(self) -> None:
        return None

    def _ignore(self, *_: Any, **__: Any) -> None: ...

    began = saved = warned = stepped = evaluated = save = _ignore


class Scaled:
    """A learner at a multiple of its own learning rates."""

    def __init__(self, learner: Learner, times: float) -> None:
        self._learner, self._times = learner, times
        self.prompt, self.named_parameters = learner.prompt, learner.named_parameters

    def learning_rates(self, rate: float | None) -> dict[str, float]:
        return {name: of * self._times for name, of in self._learner.learning_rates(rate).items()}


def fit_prompt(
    setting: Setting, config: Mapping[str, Any], budget: Budget, *, times: float, seed: int, sources: OtherTasks
) -> Fitted:
    """Train one prompt by gradient at `times` its own learning rates.

    Raises Diverged, and what the method's own check raises: InvalidTemplate, CapabilityMissing, NotFound.
    """
    method = METHODS[config["type"]]
    assert isinstance(method, LearnedMethod)
    template, backbone = setting.task.template, setting.backbone
    asked = method.check(method.config.model_validate(dict(config)), Asked(template, backbone, sources))
    encoder = setting.dressed(method.wording(asked, template, backbone.family))
    encoder = replace(encoder, max_tokens=encoder.max_tokens - method.decoder_tokens(asked, template, backbone.family))
    encoded = [encoder.encode(example) for example in setting.task.train]
    schedule = budget.schedule(rows=len(encoded), num_virtual_tokens=template.num_virtual_tokens, seed=seed)
    silent: Any = Silent()
    around = gather(asked, schedule, backbone, encoded, encoder.verbalizer, sources=sources, stop=silent.stop_requested)
    learner = Scaled(method.begin(method.settle(asked, around), around), times)
    trainer = Trainer(
        backbone,
        learner,
        encoded,
        encoder.verbalizer,
        schedule,
        judge=setting.judge(encoder),
        listener=silent,
        checkpoints=silent,
        checkpoint_s=_NEVER_S,
    )
    outcome = trainer.run()
    return Fitted(
        outcome.judgement,
        outcome.seconds,
        encoder.template.source,
        outcome.tensors,
        sum(parameter.numel() for _, parameter in learner.named_parameters()),
        outcome.best_step,
        learner.learning_rates(None),
    )


def search_words(setting: Setting, config: Mapping[str, Any]) -> Fitted:
    """Words found by judging templates on the dev rows."""
    method = METHODS[config["type"]]
    assert isinstance(method, SearchedMethod)
    asked: MethodConfig = method.config.model_validate(dict(config))
    silent: Any = Silent()
    rows: Sequence[Any] = setting.task.train
    search = Search(
        method,
        asked,
        setting.bare.template,
        rows,
        setting.task.dev,
        setting.evaluator(setting.bare),
        listener=silent,
        checkpoints=silent,
        checkpoint_s=_NEVER_S,
    )
    outcome, template = search.run()
    return Fitted(outcome.judgement, outcome.seconds, template.source, best_step=outcome.best_step)
