"""Recorded cells → one document: scores with intervals, costs, pairs, ablations. Nothing is measured here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from app.compare.cells import Cells
from app.compare.contestants import BY_NAME, CONTESTANTS
from app.compare.scores import compare, credits, describe_gain, mean_of_members, measured, score
from app.training.metrics import RESAMPLES

Record = dict[str, Any]
COSTS = (
    *("dev", "seconds", "cpu_seconds", "grid_seconds", "trained", "stored_bytes"),
    *("best_step", "times", "rates", "requests_s"),
)


def document(cells: Cells) -> Record:
    """Everything that is finished, for JSON."""
    tasks = {one["key"][0]: one for one in cells.all("task")}
    results: dict[str, dict[str, Record]] = {name: {} for name in tasks}
    served = cells.all("served")
    for record in cells.all("result"):
        name, contestant = record["key"]
        results[name][contestant] = dict(record)
    for record in served:
        if len(record["tasks"]) == 1:  # a mixed batch of one task's requests
            of = results[record["tasks"][0]].get(record["key"][0], {})
            of["requests_s"] = record["requests_s"]
    return {
        "about": {name: of for name, of in cells.about.items() if name not in ("kind", "key")},
        "tasks": {name: _task(tasks[name], results[name]) for name in tasks},
        "mean_of": list(tasks),
        "over_tasks": _over_tasks(tasks, results),
        "served": {one["key"][0]: _pick(one, "requests_s", "tasks") for one in served},
        "own_served": _own_served(results),
        "ablations": [_ablation(tasks, one) for one in cells.all("ablation")],
    }


def _task(task: Record, results: Mapping[str, Record]) -> Record:
    told = _pick(task, "template", "words", "metric", "rows", "dropped", "notes")
    ordered = [one.name for one in CONTESTANTS if one.name in results]
    return told | {
        "contestants": {name: _contestant(task, results[name]) for name in ordered},
        "pairs": _pairs(task, results),
    }


def _contestant(task: Record, result: Record) -> Record:
    if "left_out" in result:
        return {"left_out": result["left_out"]}
    scores = score(task["metric"], task["references"], result["given"])
    costs = _pick(result, *COSTS)
    return {"test": {name: of.describe() for name, of in scores.items()}} | costs


def _pairs(task: Record, results: Mapping[str, Record]) -> Record:
    """The best prompt, by dev rows, beside full fine-tuning and LoRA; an ensemble beside the mean of its members."""
    metric, references = task["metric"], task["references"]
    found: Record = {}
    best = best_prompt(results)
    for other in ("full", "lora"):
        if best is not None and "given" in results.get(other, {}):
            new, old = (measured(metric, references, results[name]["given"]) for name in (best, other))
            found[f"best_prompt_vs_{other}"] = {"prompt": best, **describe_gain(compare(new, old))}
    ensemble = results.get("ensemble", {})
    if "members" in ensemble:
        members = mean_of_members(metric, references, ensemble["members"])
        gain = compare(measured(metric, references, ensemble["given"]), members)
        each = [measured(metric, references, given).score for given in ensemble["members"]]
        found["ensemble_vs_members"] = {"mean": members.score, "members": each, **describe_gain(gain)}
    return found


def best_prompt(results: Mapping[str, Record]) -> str | None:
    """The prompt that dev rows liked best, ensembles left out."""
    names = [name for name, one in results.items() if BY_NAME[name].is_prompt and "given" in one]

    def key(name: str) -> tuple[float, float]:
        one = results[name]
        return (-one["dev"] if one["lower_is_better"] else one["dev"], -one["dev_loss"])

    return max(names, key=key, default=None)


def _over_tasks(tasks: Mapping[str, Record], results: Mapping[str, Mapping[str, Record]]) -> Record:
    """Each contestant's mean score over the tasks that all have finished it, rows resampled within tasks."""
    names = [one.name for one in CONTESTANTS if all("given" in of.get(one.name, {}) for of in results.values())]
    if len(tasks) < 2 or len({one["metric"] for one in tasks.values()}) > 1:
        return {}
    found: Record = {}
    for name in names:
        rows = [credits(of["metric"], of["references"], results[task][name]["given"]) for task, of in tasks.items()]
        found[name] = {"score": float(np.mean([of.mean() for of in rows])), "interval": _interval(rows)}
    return found


def _interval(rows: Sequence[Any]) -> list[float]:
    rng = np.random.default_rng(0)
    means = [np.mean([of[rng.integers(0, len(of), len(of))].mean() for of in rows]) for _ in range(RESAMPLES)]
    return [float(edge) for edge in np.percentile(means, [2.5, 97.5])]


def _own_served(results: Mapping[str, Mapping[str, Record]]) -> Record:
    """Requests a second of models that serve one task each, over all tasks with as many requests of each."""
    found: Record = {}
    for one in [of for of in CONTESTANTS if of.kind == "weights"]:
        rates = [of[one.name]["requests_s"] for of in results.values() if of.get(one.name, {}).get("requests_s")]
        if rates:
            found[one.name] = {"requests_s": len(rates) / sum(1 / rate for rate in rates), "tasks": len(rates)}
    return found


def _ablation(tasks: Mapping[str, Record], record: Record) -> Record:
    name, axis, value, seed = record["key"]
    told = {"task": name, "axis": axis, "value": value, "seed": int(seed)}
    if "left_out" in record:
        return told | {"left_out": record["left_out"]}
    task = tasks[name]
    scores = score(task["metric"], task["references"], record["given"])
    first = scores[task["metric"]]
    return told | first.describe() | _pick(record, "dev", "seconds", "trained", "stored_bytes")


def _pick(record: Mapping[str, Any], *names: str) -> Record:
    return {name: record[name] for name in names if name in record}
