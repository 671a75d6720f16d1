"""A comparison's document as a page of Markdown, with pictures beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from app.compare.contestants import BY_NAME
from app.compare.serving import ROWS

Document = Mapping[str, Any]


def page(found: Document, *, title: str = "Methods side by side", pictures: Mapping[str, str] | None = None) -> str:
    """`pictures`: caption → file, relative to the page."""
    parts = [f"# {title}", "", *_conditions(found), ""]
    if found["over_tasks"]:
        parts += ["## All tasks", "", *_over_tasks(found), ""]
    for name, task in found["tasks"].items():
        parts += [f"## {name}", "", *_task(name, task), ""]
    if found["ablations"]:
        parts += ["## What makes a prompt good", "", *_ablations(found), ""]
    for caption, file in (pictures or {}).items():
        parts += [f"![{caption}]({file})", ""]
    return "\n".join(parts)


def _conditions(found: Document) -> Iterator[str]:
    about, budget = found["about"], found["about"]["budget"]
    grid = ", ".join(f"{times:g}" for times in budget["grid"])
    yield (
        f"Model `{about['model']}` ({about['fingerprint'][:12]}, float32), {about['conditions']}. Everything that is "
        f"trained gets the same: {budget['steps']} steps of {budget['batch_size']} rows, the same rows in the same "
        f"order, a grid of {len(budget['grid'])} learning rates ({grid} times its own), evaluations, early stop "
        "and choice of step and rate on the dev rows. Test rows were asked once, of what was chosen."
    )
    yield ""
    yield (
        "Scores are shares with 95 % bootstrap intervals. *Times* is the rate chosen, as a multiple of the method's "
        "own; *trained* counts the numbers that gradients moved, *stored* the bytes that one more task costs (float32, "
        "words included), *seconds* the chosen run with its dev evaluations, *CPU s* what of them the processor worked "
        f"on it. *Requests a second*: {ROWS} rows in flight in all. Whatever leaves the model as it is is served by "
        "one engine, all tasks in one mixed batch; a changed model serves its own task alone, with its share of the "
        "rows in flight. Timings were taken while the machine may have had other work."
    )


def _over_tasks(found: Document) -> Iterator[str]:
    yield f"Mean over {', '.join(found['mean_of'])}."
    yield ""
    yield "| method | score | requests/s |"
    yield "|---|---|---|"
    ranked = sorted(found["over_tasks"].items(), key=lambda item: -item[1]["score"])
    for name, one in ranked:
        yield f"| {title_of(name)} | {_score(one)} | {_rate(_served(found, name))} |"


def _served(found: Document, name: str) -> float | None:
    for kind in ("served", "own_served"):
        if name in found[kind]:
            rate: float = found[kind][name]["requests_s"]
            return rate
    return None


def _task(name: str, task: Document) -> Iterator[str]:
    rows, bleu = task["rows"], any("bleu" in one.get("test", {}) for one in task["contestants"].values())
    yield (
        f"{rows['train']:,} training, {rows['dev']:,} dev and {rows['test']:,} test rows, by {task['metric']}; "
        f"template `{task['template']!r}`."
    )
    yield ""
    names = ["method", "dev", "test", *(["BLEU"] if bleu else []), "times", "trained", "stored, bytes", "seconds"]
    names += ["CPU s", "requests/s"]
    yield f"| {' | '.join(names)} |"
    yield f"|{'---|' * len(names)}"
    left_out = []
    for contestant, one in task["contestants"].items():
        if "left_out" in one:
            left_out.append(f"{title_of(contestant)}: {one['left_out']}")
            continue
        yield _row(contestant, one, task["metric"], bleu)
    if left_out:
        yield from ("", f"Left out: {'; '.join(left_out)}.")
    told = list(_pairs(task["pairs"]))
    if told:
        yield from ("", " ".join(told))


def _row(name: str, one: Document, metric: str, bleu: bool) -> str:
    cells = [title_of(name), f"{one['dev']:.3f}", _score(one["test"][metric])]
    if bleu:
        cells.append(_score(one["test"]["bleu"]) if "bleu" in one["test"] else "–")
    spent = [f"{one[of]:.1f}" if one.get(of) else "–" for of in ("seconds", "cpu_seconds")]
    times = f"{one['times']:g}" if "times" in one else "–"
    cells += [times, f"{one['trained']:,}", f"{one['stored_bytes']:,}", *spent, _rate(one.get("requests_s"))]
    return f"| {' | '.join(cells)} |"


def _pairs(pairs: Document) -> Iterator[str]:
    for other in ("full", "lora"):
        one = pairs.get(f"best_prompt_vs_{other}")
        if one:
            yield (f"The best prompt by dev rows, {title_of(one['prompt'])}, beside {title_of(other)}: {_gain(one)}.")
    one = pairs.get("ensemble_vs_members")
    if one:
        yield (
            f"The ensemble of {len(one['members'])} beside the mean of its members ({one['mean']:.3f}; "
            f"{', '.join(f'{score:.3f}' for score in one['members'])}): {_gain(one)}."
        )


def _ablations(found: Document) -> Iterator[str]:
    yield (
        "One thing changes at a time; the rest is plain prompt tuning with 20 vectors that begin as words of the rows, "
        "at its own rate."
    )
    rows = found["ablations"]
    for axis in dict.fromkeys(one["axis"] for one in rows):
        mine = [one for one in rows if one["axis"] == axis]
        tasks = list(dict.fromkeys(one["task"] for one in mine))
        yield from ("", f"| {axis} | {' | '.join(tasks)} |", f"|---|{'---|' * len(tasks)}")
        for value in dict.fromkeys(one["value"] for one in mine):
            cells = [_several([one for one in mine if (one["task"], one["value"]) == (task, value)]) for task in tasks]
            yield f"| {value} | {' | '.join(cells)} |"


def _several(rows: Sequence[Document]) -> str:
    """One seed with its interval, or the mean of several seeds with each."""
    good = [one for one in rows if "score" in one]
    if len(good) < 2:
        return _score(good[0]) if good else "–"
    scores = [one["score"] for one in good]
    return f"{sum(scores) / len(scores):.3f} ({', '.join(f'{of:.3f}' for of in scores)})"


def title_of(name: str) -> str:
    return BY_NAME[name].title


def _score(one: Document) -> str:
    low, high = one["interval"]
    return f"{one['score']:.3f} ({low:.3f}–{high:.3f})"


def _gain(one: Document) -> str:
    low, high = one["interval"]
    return f"{one['gain']:+.3f} ({low:+.3f} to {high:+.3f}, better in {one['certainty']:.0%} of paired resamples)"


def _rate(rate: float | None) -> str:
    return "–" if rate is None else f"{rate:,.0f}"
