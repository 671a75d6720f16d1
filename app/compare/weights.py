"""Alternatives that change weights: an own copy of the model, trained by the same loop, rows, steps and choice on dev.

The shared frozen model is never touched: a copy is loaded for each run. Its loss is the very one that prompts learn by
(`app/training/objective.py`), through the same layout; only the gradient goes elsewhere.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from app.backbone import Backbone, Verbalizer
from app.backbone.backbone import wrap_model
from app.backbone.forward import Forward
from app.backbone.given import GivenPrefixes
from app.backbone.layout import Layout
from app.backbone.scoring import score_rows
from app.compare import lora
from app.compare.budget import Budget
from app.compare.fitted import Fitted
from app.compare.setting import Load, Setting
from app.errors import CapabilityMissing
from app.training.cotraining import MICRO_TOKENS
from app.training.examples import Encoded
from app.training.gradients import WASTE, WASTE_ELSEWHERE, in_parts
from app.training.objective import count_terms, summed_loss
from app.training.runs import Outcome, Run

LAST_SHARE = 0.25


class TrainableForward(Forward):
    """Differentiable in the weights too, the output layer's among them."""

    def log_probs(
        self,
        embeds: Tensor,
        layout: Layout,
        reads: Tensor,
        pick: Tensor,
        tokens: Tensor,
        given: GivenPrefixes | None = None,
    ) -> Tensor:
        logits = self._logits(self._arguments(embeds, layout, given), reads)
        return logits[pick, tokens] - logits.logsumexp(-1)[pick]


@dataclass(frozen=True)
class Copy:
    """A model of one's own; `parameters` are those that learn."""

    backbone: Backbone
    parameters: Mapping[str, nn.Parameter]

    @staticmethod
    def open(load: Load, name: str) -> Copy:
        """For the contestant `name`. Raises CapabilityMissing where the model has no fast path, or PEFT is missing."""
        backbone = load()
        forward = backbone.probed.forward
        if backbone.family != "causal" or forward is None:
            raise CapabilityMissing("weights are trained of decoders on the fast path alone")
        model = backbone.model.float().requires_grad_(False)
        parameters = _chosen(model, name)
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        trainable = TrainableForward(model, forward.mask_style, forward.window, forward.head_apart)
        probed = replace(backbone.probed, forward=trainable, decoder=None)
        return Copy(replace(backbone, probed=probed), parameters)

    def put(self, tensors: Mapping[str, Tensor]) -> None:
        """Set what learns. Names are the parameters'."""
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(tensors[name])

    def merged(self) -> Backbone:
        """As it would be served: one plain model, frozen, in the fastest form that it has. The copy is used up."""
        model = lora.merged(self.backbone.model)
        name, identity = self.backbone.name, f"{self.backbone.fingerprint}-changed"
        return wrap_model(model, self.backbone.tokenizer, name=name, identity=identity)


def _chosen(model: Any, name: str) -> dict[str, nn.Parameter]:
    if name == "lora":
        return lora.inject(model)
    if name == "full":
        return dict(model.named_parameters())
    assert name == "last_layers"
    blocks = max(
        (of for of in model.base_model.modules() if isinstance(of, nn.ModuleList)), key=len, default=nn.ModuleList()
    )
    last = blocks[len(blocks) - max(1, int(LAST_SHARE * len(blocks))) :]
    wanted = {id(parameter) for block in last for parameter in block.parameters()}
    return {of: parameter for of, parameter in model.named_parameters() if id(parameter) in wanted}


def fit_weights(setting: Setting, copy: Copy, budget: Budget, *, rate: float, seed: int) -> Fitted:
    """Train the copy. `setting` is the task on the copy's backbone. Raises Diverged."""
    encoder = setting.bare
    encoded = [encoder.encode(example) for example in setting.task.train]
    schedule = budget.schedule(rows=len(encoded), num_virtual_tokens=0, seed=seed)
    judge: Any = setting.judge(encoder)
    silent: Any = _Deaf()
    learner: Any = _Weights(copy.parameters, rate)
    run = WeightsRun(learner, encoded, encoder.verbalizer, schedule, judge=judge, listener=silent)
    outcome = run.learn(copy.backbone)
    return Fitted(
        outcome.judgement,
        outcome.seconds,
        encoder.template.source,
        outcome.tensors,
        sum(parameter.numel() for parameter in copy.parameters.values()),
        outcome.best_step,
        {"weights": rate},
    )


class WeightsRun(Run):
    """A run whose learner is the model: the order of rows, the optimiser, clipping, schedule, evaluations, patience and
    choice are a prompt's; only what is kept of the best evaluation differs."""

    def evaluate(self) -> None:
        place = self.place
        ask: Any = self._judge
        judgement = ask(None)
        better = math.isfinite(judgement.loss) and (place.best is None or judgement.rank > place.best.rank)
        if better:
            place.best, place.best_step = judgement, place.step
            place.best_tensors = {
                name: parameter.detach().to("cpu", torch.float32, copy=True)
                for name, parameter in self._parameters.items()
            }
        place.stale_evaluations = 0 if better or judgement.loss < place.lowest_loss else place.stale_evaluations + 1
        place.lowest_loss = min(place.lowest_loss, judgement.loss)

    def learn(self, backbone: Backbone) -> Outcome:
        while not self.place.done:
            began = time.monotonic()
            loss = accumulate(backbone, self.next_batch(), self.verbalizer)
            self.take_step(loss)
            self.place.seconds += time.monotonic() - began
        return self.outcome


def accumulate(backbone: Backbone, rows: Sequence[Encoded], verbalizer: Verbalizer | None) -> float:
    """Add the gradient of the rows' mean loss to the weights that learn; return that loss."""
    terms, total = count_terms(rows), 0.0
    for part in in_parts(rows, MICRO_TOKENS, waste=WASTE.get(backbone.device.type, WASTE_ELSEWHERE)):
        asked = [verbalizer or one.answer for one in part]
        scores = score_rows(backbone, [one.row for one in part], [None] * len(part), asked)
        loss = summed_loss(verbalizer, scores, part) / terms
        torch.autograd.backward([loss])
        total += float(loss.detach())
    return total


class _Weights:
    def __init__(self, parameters: Mapping[str, nn.Parameter], rate: float) -> None:
        self._parameters, self._rate = parameters, rate

    def named_parameters(self) -> list[tuple[str, Tensor]]:
        return list(self._parameters.items())

    def learning_rates(self, rate: float | None) -> dict[str, float]:
        return dict.fromkeys(self._parameters, self._rate)


class _Deaf:
    def stepped(self, *_: Any) -> None: ...
    def evaluated(self, *_: Any, **__: Any) -> None: ...
    def warned(self, message: str) -> None: ...
