"""What makes a prompt good (after Lester et al. 2021): its length, its start, its rate, its rows and its backbone.

One thing changes at a time. The prompt is the plain one, 20 vectors that begin as words of the rows, at its own rate.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from app.backbone import Backbone, parse_template
from app.backbone.soft_prompt import from_tensors
from app.backbone.training_form import prepare_for_training
from app.compare.comparison import Comparison
from app.compare.prompts import OtherTasks, fit_prompt
from app.compare.setting import Load, Setting
from app.compare.tasks import TaskRows
from app.errors import ChorusError, InvalidRequest

LENGTHS = (1, 5, 20, 100)
STARTS = ("random", "vocab", "labels", "text")
RATES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
SIZES = (16, 64, 256, 1024, 4096)
AXES = ("length", "init", "rate", "rows", "backbone")

_PLAIN = {"type": "prompt_tuning", "reparametrization": "none"}
_SLOT = re.compile(r"<prompt:\d+>")


@dataclass(frozen=True)
class Variation:
    """One value of one axis."""

    axis: str
    value: str
    task: TaskRows
    times: float = 1.0
    config: Mapping[str, Any] = field(default_factory=lambda: dict(_PLAIN))
    load: Load | None = None


def check_axes(names: Sequence[str]) -> tuple[str, ...]:
    """Raises InvalidRequest."""
    unknown = [name for name in names if name not in AXES]
    if unknown:
        raise InvalidRequest(f"no ablation {unknown[0]!r}; there are {', '.join(AXES)}", param="ablate")
    return tuple(name for name in AXES if name in names)


def variations(task: TaskRows, axes: Sequence[str], backbones: Mapping[str, Load]) -> Iterator[Variation]:
    """Those of the axes that make sense for this task. `backbones`: other models by name."""
    found = {
        "length": _by_length(task),
        "init": _by_start(task),
        "rate": (Variation("rate", f"{times:g}", task, times) for times in RATES),
        "rows": (
            Variation("rows", str(size), replace(task, train=task.train[:size]))
            for size in sorted({min(size, len(task.train)) for size in SIZES})
        ),
        "backbone": (Variation("backbone", name, task, load=load) for name, load in backbones.items()),
    }
    for axis in axes:
        yield from found[axis]


def _by_length(task: TaskRows) -> Iterator[Variation]:
    if len(task.template.slots) == 1:
        for count in LENGTHS:
            yield Variation("length", str(count), with_length(task, count))


def _by_start(task: TaskRows) -> Iterator[Variation]:
    text = " ".join("".join(task.template.literals).split())
    for init in STARTS:
        if (init == "labels" and task.labels is None) or (init == "text" and not text):
            continue
        more = {"init_text": text} if init == "text" else {}
        yield Variation("init", init, task, config=_PLAIN | {"init": init} | more)


def with_length(task: TaskRows, count: int) -> TaskRows:
    """The same task with `count` vectors in its one slot."""
    return replace(task, template=parse_template(_SLOT.sub(f"<prompt:{count}>", task.template.source)))


def ablate(
    comparison: Comparison,
    axes: Sequence[str],
    names: Sequence[str],
    *,
    backbones: Mapping[str, Load] | None = None,
    seeds: int = 1,
) -> None:
    """Every variation of the named tasks that is not finished yet. Raises TimeIsUp."""
    loaded: dict[str, Backbone] = {}
    for task in comparison.tasks:
        if task.name not in names:
            continue
        for one in variations(task, axes, backbones or {}):
            for seed in range(comparison.budget.seed, comparison.budget.seed + seeds):
                key = (task.name, one.axis, one.value, str(seed))
                if comparison.cells.get("ablation", *key) is None:
                    comparison.look_at_clock()
                    comparison.cells.put("ablation", key, **_measure(comparison, one, seed, loaded))
                    comparison.tell(f"{task.name}: {one.axis} {one.value}, seed {seed}")


def _measure(comparison: Comparison, one: Variation, seed: int, loaded: dict[str, Backbone]) -> dict[str, Any]:
    backbone = comparison.backbone
    if one.load is not None:
        if one.value not in loaded:
            loaded.clear()
            loaded[one.value] = prepare_for_training(one.load())
        backbone = loaded[one.value]
    setting = Setting(one.task, backbone, comparison.budget.seed)
    try:
        fitted = fit_prompt(setting, one.config, comparison.budget, times=one.times, seed=seed, sources=OtherTasks())
    except ChorusError as error:
        return {"left_out": error.message}
    given = setting.answer(from_tensors(fitted.tensors), setting.dressed(parse_template(fitted.template)))
    return fitted.describe() | {"given": given}
