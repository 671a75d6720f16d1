"""From the best prompt of a run to a version: judged next to its baselines, described, published exactly once.

Publishing is idempotent by the job's id and fenced by its attempt: whatever is killed, a job makes one version.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypedDict, cast

import numpy as np
import torch

from app.backbone import Backbone, SoftPrompt, load_prompt, parse_template
from app.backbone.prompt import check_prompt
from app.backbone.soft_prompt import VECTORS, from_tensors, place, to_tensors
from app.errors import Conflict, InvalidPrompt
from app.training.data import Example
from app.training.ensembles import Part, can_measure, measure_together
from app.training.evaluate import Evaluator, Measured
from app.training.gate import Gain, gain_over, passes
from app.training.golden import golden_outputs
from app.training.job import JobResult
from app.training.plan import Plan
from app.training.runs import Diverged, Outcome
from app.training.schedule import Schedule
from app.training.servable import reading_of
from prompt_store import (
    Alias,
    AliasNotFound,
    Decoding,
    Evaluation,
    NewPrompt,
    PromptMeta,
    PromptStore,
    RevisionMismatch,
    TaskNotFound,
    TaskSpec,
    Version,
)
from prompt_store.models import EnsembleMode, Metric, TensorName, VersionState

MODE: EnsembleMode = "vote"
"""How a sweep's best answer together."""

RACES = 3
"""How often an alias may move under a comparison before the job stays a candidate."""


@dataclass(frozen=True)
class Trained:
    """A finished prompt with everything that is published about it. `together`: of a member of an ensemble, how good
    all are together, where that was measured."""

    tensors: Mapping[str, np.ndarray]
    prompt: SoftPrompt | None
    meta: PromptMeta
    spec: TaskSpec
    measured: Measured
    card: Evaluation
    dev: Sequence[Example]
    evaluator: Evaluator
    together: Measured | None = None

    @property
    def metrics(self) -> dict[str, Any]:
        """What the job's record shows."""
        return {
            self.measured.metric: self.measured.score,
            "dev_loss": self.measured.loss,
            "n": self.measured.n,
            "interval": list(self.measured.interval),
            "split": self.card.split,
            "baselines": dict(self.card.baselines),
            "calibration": self.card.calibration and self.card.calibration.model_dump(),
            "best_step": self.card.details["best_step"],
        }


def join(trained: Sequence[Trained]) -> tuple[list[Trained], dict[str, Any]]:
    """The members of an ensemble with its figures on each card, and those figures for the job's record; one prompt
    alone as it is."""
    metric = trained[0].measured.metric
    labels = trained[0].evaluator.encoder.verbalizer is not None
    if len(trained) == 1 or not can_measure(labels=labels, mode=MODE, metric=metric):
        return list(trained), {}
    found = measure_together([Part(one.evaluator, one.prompt) for one in trained], trained[0].dev, MODE, metric)
    told = {"mode": MODE, "of": len(trained), "score": found.score, "n": found.n, "interval": list(found.interval)}
    joined = []
    for number, one in enumerate(trained, start=1):
        details = one.card.details | {"ensemble": told | {"place": number}}
        joined.append(replace(one, card=one.card.model_copy(update={"details": details}), together=found))
    return joined, {"ensemble": told}


@dataclass(frozen=True)
class Verdict:
    """Whether to move the alias, and what that was decided on: what it was compared with (an ensemble's versions), at
    which alias revision, its score and the gain over it, by `metric`."""

    promote: bool
    expected: int | None = None
    compared: tuple[Version, ...] = ()
    score: float | None = None
    gain: Gain | None = None
    metric: Metric | None = None

    @property
    def comparison(self) -> dict[str, Any]:
        """What the card and the job's record say of it; empty where nothing was compared."""
        if not self.compared:
            return {}
        numbers = [version.number for version in self.compared]
        told: dict[str, Any] = {"version": numbers[0]} if len(numbers) == 1 else {"version": None, "ensemble": numbers}
        told |= {"score": self.score, "metric": self.metric}
        return told if self.gain is None else told | asdict(self.gain) | {"interval": list(self.gain.interval)}


class Publisher:
    """Publishes what one attempt at one job has learned."""

    def __init__(
        self, store: PromptStore, backbone: Backbone, plan: Plan, evaluator: Evaluator, *, job_id: str, attempt: int
    ) -> None:
        self._store = store
        self._backbone = backbone
        self._plan = plan
        self._evaluator = evaluator
        self._job_id = job_id
        self._attempt = attempt

    def describe(
        self,
        outcome: Outcome,
        schedule: Schedule,
        peak_rate: float,
        *,
        train: Sequence[Example],
        dev: Sequence[Example],
        split: str,
    ) -> Trained:
        """Judge the prompt, alone and next to its baselines. Raises Conflict if the task has changed meanwhile,
        Diverged for a prompt that no replica would load."""
        spec = self._spec()
        learned = from_tensors(outcome.tensors)
        prompt = None if learned is None else place(learned, self._backbone.device, torch.float32)
        measured = self._evaluator.measure(prompt, dev)
        details = {
            "job": self._job_id,
            "data": {"digest": self._plan.training.digest, "name": self._plan.training.name, "rows": len(train)},
            "best_step": outcome.best_step,
            "steps": outcome.steps,
            "stopped_early": outcome.stopped_early,
            "seconds": round(outcome.seconds, 1),
            "loss": measured.loss,
            "hyperparameters": schedule.describe(peak_rate),
            "metadata": dict(self._plan.metadata),
            **outcome.details,
        }
        tensors = {name: tensor.numpy() for name, tensor in outcome.tensors.items()}
        meta = self._meta(prompt, spec, schedule)
        try:
            check_prompt(meta, tensors, self._backbone)
        except InvalidPrompt as error:
            raise Diverged(f"no replica would load what was learned: {error.message}") from error
        return Trained(
            tensors=tensors,
            prompt=prompt,
            meta=meta,
            spec=spec,
            measured=measured,
            card=Evaluation(
                metric=measured.metric,
                score=measured.score,
                n=measured.n,
                interval=measured.interval,
                split=split,
                baselines=self._baselines(train, dev),
                calibration=measured.calibration,
                at=time.time(),
                details=details,
            ),
            dev=dev,
            evaluator=self._evaluator,
        )

    def publish(self, *trained: Trained) -> tuple[JobResult, Verdict]:
        """Make the version, or several with the ensemble that they are, and move the alias if it is to move.

        The same job again gives the same versions. Raises Fenced, StoreUnavailable and other errors of the store.
        """
        for _ in range(RACES):
            verdict = self._decide(trained)
            try:
                return self._commit(trained, verdict), verdict
            except RevisionMismatch:
                continue  # the alias moved while we compared: compare with what it points to now
        verdict = Verdict(promote=False)
        return self._commit(trained, verdict), verdict

    def _commit(self, trained: Sequence[Trained], verdict: Verdict) -> JobResult:
        best = trained[0]
        told = {"compared_with": verdict.comparison} if verdict.compared else {}
        cards = [one.card.model_copy(update={"details": one.card.details | told}) for one in trained]
        publish: _Publish = {
            "task": self._plan.task,
            "publication": self._job_id,
            "alias": self._plan.publish.alias if verdict.promote else None,
            "state": "published" if verdict.promote else "candidate",
            "fence": self._attempt,
            "alias_revision": verdict.expected,
            "spec": best.spec,
        }
        if len(trained) == 1:
            made = self._store.publish(meta=best.meta, tensors=best.tensors, card=cards, **publish)
            return JobResult.of([made.version])
        prompts = [NewPrompt(one.meta, one.tensors, (card,)) for one, card in zip(trained, cards, strict=True)]
        return JobResult.of(self._store.publish_together(prompts=prompts, mode=MODE, **publish).versions)

    def _decide(self, trained: Sequence[Trained]) -> Verdict:
        when = self._plan.publish.when
        if when != "better_than_current":
            return Verdict(promote=when == "always")
        alias = self._alias()
        if alias is None:
            return Verdict(promote=True, expected=0)
        if alias.split is not None:
            return Verdict(promote=False)  # a split is somebody's experiment: people move it
        publish = self._plan.publish
        metric = publish.metric or self._evaluator.metric
        if not all(can_measure(labels=self._labels, mode=mode, metric=metric) for mode in _modes(alias, trained)):
            return Verdict(promote=False)
        current = [self._store.get_version(self._plan.task, number) for number in alias.versions]
        try:
            loaded = [load_prompt(one, self._store.load(one), self._backbone) for one in current]
        except InvalidPrompt:
            return Verdict(promote=True, expected=alias.revision)  # made for another backbone: it cannot answer here
        if any(set(one.template.fields) != set(trained[0].spec.fields) for one in loaded):
            return Verdict(promote=True, expected=alias.revision)  # made for fields that the task has no longer
        dev = trained[0].dev
        mode = alias.ensemble.mode if alias.ensemble is not None else MODE
        before = _measure([Part(*self._evaluator.reading(one)) for one in loaded], dev, mode, metric)
        now = trained[0].measured if len(trained) == 1 else trained[0].together
        if now is None or now.metric != metric:
            now = _measure([Part(one.evaluator, one.prompt) for one in trained], dev, MODE, metric)
        gain = gain_over(now, before, least=publish.min_gain)
        return Verdict(passes(publish, gain), alias.revision, tuple(current), before.score, gain, before.metric)

    @property
    def _labels(self) -> bool:
        return self._evaluator.encoder.verbalizer is not None

    def _alias(self) -> Alias | None:
        try:
            return self._store.get_alias(self._plan.task, self._plan.publish.alias)
        except (TaskNotFound, AliasNotFound):
            return None

    def _spec(self) -> TaskSpec:
        """The task's spec as it is now, or what it will be created with."""
        try:
            spec = self._store.get_task(self._plan.task).spec
        except TaskNotFound:
            return _with_room(self._plan.spec, self._evaluator.max_tokens)
        if set(spec.fields) != set(self._plan.spec.fields) or set(spec.labels or ()) != set(
            self._plan.spec.labels or ()
        ):
            raise Conflict(f"the fields or labels of task {self._plan.task} changed while the job ran", param="task")
        return spec

    def _baselines(self, train: Sequence[Example], dev: Sequence[Example]) -> dict[str, float]:
        majority = self._evaluator.measure_majority(train, dev)
        found = {} if majority is None else {"majority": majority}
        asked = replace(self._evaluator.encoder, template=parse_template(self._plan.template))
        return found | {"zero_shot": replace(self._evaluator, encoder=asked).measure_without_slots(dev).score}

    def _meta(self, prompt: SoftPrompt | None, spec: TaskSpec, schedule: Schedule) -> PromptMeta:
        """Nothing in it depends on time or attempt: a resumed job makes the same blob."""
        encoder = self._evaluator.encoder
        method = self._plan.method.model_dump(exclude_none=True)
        learned = {
            "tensors": _shapes(prompt),
            "decoding": spec.decoding,
            "golden": golden_outputs(self._backbone, encoder, prompt),
            "provenance": {
                "job": self._job_id,
                "data_digest": self._plan.training.digest,
                "seed": schedule.seed,
                "metadata": dict(self._plan.metadata),
            },
        }
        return reading_of(self._plan.task, method, encoder, self._backbone).model_copy(update=learned)


class _Publish(TypedDict):
    """What the two ways to publish have in common."""

    task: str
    publication: str
    alias: str | None
    state: VersionState
    fence: int
    alias_revision: int | None
    spec: TaskSpec


def _modes(alias: Alias, trained: Sequence[Trained]) -> list[EnsembleMode]:
    """How the ensembles on either side of a comparison answer."""
    current: list[EnsembleMode] = [] if alias.ensemble is None else [alias.ensemble.mode]
    return current + ([MODE] if len(trained) > 1 else [])


def _measure(parts: Sequence[Part], dev: Sequence[Example], mode: EnsembleMode, metric: Metric) -> Measured:
    if len(parts) > 1:
        return measure_together(parts, dev, mode, metric)
    return replace(parts[0].evaluator, metric=metric).measure(parts[0].prompt, dev)


def _shapes(prompt: SoftPrompt | None) -> dict[TensorName, tuple[int, ...]] | None:
    """What the metadata says of the tensors: nothing where they are the usual one."""
    shapes = {name: tuple(part.shape) for name, part in to_tensors(prompt).items()}
    return None if set(shapes) <= {VECTORS} else cast("dict[TensorName, tuple[int, ...]]", shapes)


def _with_room(spec: TaskSpec, max_tokens: int) -> TaskSpec:
    """A new free-text task answers at least as long as its training rows do."""
    if spec.labels is not None or max_tokens <= spec.decoding.max_tokens:
        return spec
    return spec.model_copy(update={"decoding": Decoding(max_tokens=max_tokens)})
