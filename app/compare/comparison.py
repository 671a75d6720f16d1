"""The comparison: each contestant on each task, run by run, choice on dev rows, test rows asked once at the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from app.backbone import Backbone, parse_template
from app.backbone.soft_prompt import from_tensors, vectors_of
from app.backbone.training_form import prepare_for_training
from app.compare import written
from app.compare.budget import Budget
from app.compare.cells import Cells
from app.compare.contestants import BASE, BY_NAME, Contestant
from app.compare.fitted import Fitted
from app.compare.prompts import OtherTasks, fit_prompt, search_words
from app.compare.serving import ROWS, asks_of, requests_per_second
from app.compare.setting import Load, Setting, named
from app.compare.tasks import TaskRows
from app.compare.weights import Copy, fit_weights
from app.errors import CapabilityMissing, ChorusError

Tell = Callable[[str], None]
Record = dict[str, Any]


class TimeIsUp(Exception):
    """The time box has ended; what is finished is on the disk."""


@dataclass
class Comparison:
    """`load` gives a fresh copy of the model; `deadline` is on the monotonic clock: no run begins after it."""

    load: Load
    tasks: Sequence[TaskRows]
    contestants: Sequence[Contestant]
    budget: Budget
    cells: Cells
    tell: Tell = print
    deadline: float | None = None

    def __post_init__(self) -> None:
        self.backbone: Backbone = prepare_for_training(self.load())
        self.settings = {task.name: Setting(task, self.backbone, self.budget.seed) for task in self.tasks}
        for task in self.tasks:
            self.cells.check_task(task.name, task.digest)
            if self.cells.get("task", task.name) is None:
                self.cells.put("task", (task.name,), **describe_task(task))

    def run(self) -> None:
        """Everything that is not finished yet. Raises TimeIsUp."""
        for contestant in self.contestants:
            for task in self.tasks:
                if self.cells.get("result", task.name, contestant.name) is None:
                    self._result(self.settings[task.name], contestant)

    def _result(self, setting: Setting, contestant: Contestant) -> None:
        key = (setting.task.name, contestant.name)
        try:
            found = self._contest(setting, contestant)
        except ChorusError as error:
            found = {"left_out": error.message}
        self.cells.put("result", key, contestant=contestant.kind, **found)
        if contestant.kind == "weights" and "tensors" in found:  # a whole model, and all was asked of it
            self.cells.drop(tuple(found["tensors"].split("--")))
        said = found.get("left_out") or f"dev {found['dev']:.3f}, {found['seconds']:.1f} s"
        self.tell(f"{setting.task.name}: {contestant.title}: {said}")

    def _contest(self, setting: Setting, contestant: Contestant) -> Record:
        if contestant.name == "majority":
            fitted, given = written.most_common(setting)
            return fitted.describe() | {"given": given}
        if contestant.kind == "ensemble":
            return self._ensemble(setting)
        if contestant.kind == "weights":
            return self._weights(setting, contestant)
        if contestant.kind == "learned":
            return self._learned(setting, contestant)
        fitted, tries = self._worded(setting, contestant)
        given = setting.answer(None, setting.dressed(parse_template(fitted.template)))
        return fitted.describe() | {"given": given, "tries": tries}

    def _worded(self, setting: Setting, contestant: Contestant) -> tuple[Fitted, int]:
        if contestant.name == "zero_shot":
            return written.zero_shot(setting), 1
        if contestant.kind == "searched":
            self.look_at_clock()
            fitted = timed(lambda: search_words(setting, contestant.config))
            return fitted, fitted.best_step
        draws = range(len(self.budget.grid))
        found = [written.few_shot(setting, self.budget.shots, seed=self.budget.seed + i) for i in draws]
        return max(found, key=lambda one: one.judgement.rank), len(found)

    def _learned(self, setting: Setting, contestant: Contestant) -> Record:
        point = self._best_point(setting, contestant)
        encoder = setting.dressed(parse_template(point["template"]))
        given = setting.answer(from_tensors(self._kept(point)), encoder)
        return point | {"given": given}

    def _best_point(self, setting: Setting, contestant: Contestant) -> Record:
        """The best run of the grid, by dev rows; its tensors are kept, the others' are not."""
        task, name, seed = setting.task.name, contestant.name, self.budget.seed
        points = [self._point(setting, contestant, times, seed) for times in self.budget.grid]
        best = best_of(points)
        for point in points:
            if point is not best:
                self.cells.drop((task, name, *point["key"][2:]))
        return strip(best) | {"grid_seconds": sum(one.get("seconds", 0.0) for one in points), "times": best["times"]}

    def _point(self, setting: Setting, contestant: Contestant, times: float, seed: int) -> Record:
        """One run, now or earlier."""
        key = (setting.task.name, contestant.name, f"{times:g}", str(seed))
        known = self.cells.get("point", *key)
        if known is not None:
            return known
        self.look_at_clock()
        try:
            fitted = timed(lambda: self._fit(setting, contestant, times, seed))
        except ChorusError as error:
            if error.code != "diverged":
                raise
            return self.cells.put("point", key, times=times, failed=error.message)
        self.cells.keep(key, fitted.tensors)
        point = self.cells.put("point", key, times=times, tensors="--".join(key), **fitted.describe())
        self.tell(f"    {' '.join(key)}: dev {point['dev']:.3f}, {point['seconds']:.1f} s")
        return point

    def _fit(self, setting: Setting, contestant: Contestant, times: float, seed: int) -> Fitted:
        if contestant.kind == "weights":
            copy = self._copy(contestant)
            own = replace(setting, backbone=copy.backbone)
            assert contestant.rate is not None
            return fit_weights(own, copy, self.budget, rate=times * contestant.rate, seed=seed)
        sources = OtherTasks(self._others(setting.task.name))
        return fit_prompt(setting, contestant.config, self.budget, times=times, seed=seed, sources=sources)

    def _copy(self, contestant: Contestant) -> Copy:
        copy = Copy.open(self.load, contestant.name)
        shared = {part.data_ptr() for part in self.backbone.model.parameters()}
        assert not any(part.data_ptr() in shared for part in copy.backbone.model.parameters())
        return copy

    def _weights(self, setting: Setting, contestant: Contestant) -> Record:
        point = self._best_point(setting, contestant)
        copy = self._copy(contestant)
        copy.put(self._kept(point))
        own = replace(setting, backbone=copy.backbone)
        given = own.answer(None, own.bare)
        served = replace(setting, backbone=copy.merged())
        rows = max(1, ROWS // len(self.tasks))
        rate = requests_per_second(served.backbone, asks_of(served, served.bare, [None]), rows=rows)
        return point | {"given": given, "requests_s": rate}

    def _ensemble(self, setting: Setting) -> Record:
        """Prompts of several seeds at the rate chosen for the first: the mean of their label probabilities."""
        if setting.task.labels is None:
            raise CapabilityMissing("an ensemble's answers are compared where labels have probabilities")
        base = BY_NAME[BASE]
        first = self._best_point(setting, base)
        seeds = range(self.budget.seed, self.budget.seed + self.budget.members)
        points = [self._point(setting, base, first["times"], seed) for seed in seeds]
        points = [one for one in points if "failed" not in one]
        prompts = [from_tensors(self._kept(one)) for one in points]
        each = [setting.probabilities(prompt, setting.encoder) for prompt in prompts]
        labels = setting.task.labels
        return first | {
            "dev": sum(one["dev"] for one in points) / len(points),
            "seconds": sum(one["seconds"] for one in points),
            "cpu_seconds": sum(one["cpu_seconds"] for one in points),
            "trained": sum(one["trained"] for one in points),
            "stored_bytes": sum(one["stored_bytes"] for one in points),
            "tensors": [one["tensors"] for one in points],
            "given": named(labels, torch.stack(each).mean(0)),
            "members": [named(labels, one) for one in each],
        }

    def _others(self, task: str) -> Mapping[str, Tensor]:
        """The other tasks' prompts, as far as they are there."""
        found = {}
        for other in self.tasks:
            known = self.cells.get("result", other.name, BASE)
            if other.name != task and known is not None and "tensors" in known:
                vectors = vectors_of(from_tensors(self._kept(known)))
                assert vectors is not None
                found[other.name] = vectors
        return found

    def _kept(self, record: Record) -> dict[str, Tensor]:
        found = self.cells.tensors(tuple(record["tensors"].split("--")))
        if found is None:
            raise FileNotFoundError(f"{record['tensors']}.safetensors is gone: begin anew in another folder")
        return found

    def look_at_clock(self) -> None:
        """Raise TimeIsUp behind the deadline."""
        if self.deadline is not None and time.monotonic() > self.deadline:
            raise TimeIsUp


def timed(fit: Callable[[], Fitted]) -> Fitted:
    """With the processor's seconds."""
    began = time.process_time()
    fitted = fit()
    return replace(fitted, cpu_seconds=time.process_time() - began)


def best_of(points: Sequence[Record]) -> Record:
    """By score, then by loss. Raises CapabilityMissing where every run failed."""
    good = [one for one in points if "failed" not in one]
    if not good:
        raise CapabilityMissing(f"every learning rate failed: {points[0]['failed']}")
    return max(good, key=lambda one: (-one["dev"] if one["lower_is_better"] else one["dev"], -one["dev_loss"]))


def strip(record: Record) -> Record:
    return {name: of for name, of in record.items() if name not in ("kind", "key")}


def describe_task(task: TaskRows) -> Record:
    """What a report says of a task, and what scores are computed with."""
    return {
        "digest": task.digest,
        "template": task.template.source,
        "words": None if task.words is None else {label: list(of) for label, of in task.words.items()},
        "metric": task.metric,
        "rows": {"train": len(task.train), "dev": len(task.dev), "test": len(task.test)},
        "references": [list(of) for of in task.references],
        "dropped": task.dropped,
        "notes": list(task.notes),
    }
