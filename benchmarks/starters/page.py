"""What the starters' cards say, as a page and as a table between two marks of another file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.starters.recipes import RECIPES
from benchmarks.starters.scoring import ZERO_SHOT
from benchmarks.statistics import percent
from prompt_store import Evaluation
from prompt_store.starters import Starter

BEGIN, END = "<!-- starters -->", "<!-- /starters -->"
NOT_QUOTED = ": do not quote"
HEAD = ("| starter | test set | starter prompt | same words, no prompt | majority |", "|---|---|---|---|---|")


def told(evaluation: Evaluation) -> str:
    """The figures with their intervals."""
    if evaluation.metric == "accuracy":
        return percent(int(evaluation.details["hits"]), evaluation.n)
    parts = [_score("ROUGE-L", evaluation.score, evaluation.interval)]
    if bleu := evaluation.details.get("bleu"):
        parts.append(_score("BLEU", bleu["score"], bleu["interval"]))
    return ", ".join(parts)


def table(starters: Sequence[Starter]) -> list[str]:
    """Lines of Markdown, the recipes' order first."""
    return [*HEAD, *(_row(starter) for starter in ordered(starters))]


def write_table(file: Path, starters: Sequence[Starter]) -> None:
    """Put the table between the file's marks. Ends the program where they are not there."""
    text = file.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise SystemExit(f"{file} has no marks {BEGIN} and {END}")
    before, _, rest = text.partition(BEGIN)
    file.write_text("\n".join([before + BEGIN, *table(starters), END]) + rest.partition(END)[2], encoding="utf-8")


def write_page(file: Path, starters: Sequence[Starter]) -> None:
    lines = [
        "# The starters' cards",
        "",
        "Written by `python -m benchmarks.starters --page FILE` from the cards of the shipped prompts. 95 % intervals: "
        "Wilson for accuracy, bootstrap for texts.",
        "",
        *table(starters),
    ]
    for starter in ordered(starters):
        lines += ["", f"## {starter.task}", "", *_about(starter)]
    file.write_text("\n".join([*lines, ""]), encoding="utf-8")


def ordered(starters: Sequence[Starter]) -> list[Starter]:
    order = [recipe.task for recipe in RECIPES]
    return sorted(starters, key=lambda one: (order.index(one.task) if one.task in order else len(order), one.task))


def _row(starter: Starter) -> str:
    tested = starter.card[-1]
    data, caution = tested.details["data"], tested.details.get("caution", "")
    if caution.endswith(NOT_QUOTED):
        return f"| {starter.task} | {data} | not quoted: {caution.removesuffix(NOT_QUOTED)} | | |"
    return f"| {starter.task} | {data}, {tested.n:,} rows | {told(tested)} | {_bare(tested)} | {_to_beat(tested)} |"


def _bare(tested: Evaluation) -> str:
    score = tested.baselines.get(ZERO_SHOT)
    if score is None:
        return "–"
    return f"{100 * score:.1f} %" if tested.metric == "accuracy" else f"ROUGE-L {score:.3f}"


def _to_beat(tested: Evaluation) -> str:
    if "majority" in tested.baselines:
        return f"{100 * tested.baselines['majority']:.1f} %"
    return f"ROUGE-L {tested.baselines['input']:.3f} by the input itself"


def _about(starter: Starter) -> Iterator[str]:
    trained, tested = starter.card[0], starter.card[-1]
    how, made = trained.details, trained.details["metadata"]
    numbers = how["hyperparameters"]
    yield f"{starter.spec.description} `{starter.meta.template!r}`"
    yield ""
    yield f"- Data: {made['data']}, {how['data']['rows']:,} rows to learn from. {made['licence']}."
    yield (
        f"- Learned by {starter.meta.method['type']}: {numbers['num_virtual_tokens']} vectors, {numbers['steps']} "
        f"steps of {numbers['batch_size']} rows, rate {numbers['learning_rate']:.4g}, seed {numbers['seed']}."
    )
    bare = trained.baselines.get(ZERO_SHOT)
    without = "" if bare is None else f"; the same words without vectors {bare:.3f}"
    yield f"- {trained.metric} on {trained.n} dev rows {trained.score:.3f}{without}."
    if sweep := how.get("sweep"):
        yield f"- The best of {len(sweep)} tries on dev rows: {_settings(how['settings'])}."
    if by_label := tested.details.get("by_label"):
        yield (
            "- Test rows by label: " + ", ".join(f"{label} {hits}/{of}" for label, (hits, of) in by_label.items()) + "."
        )
    if "facts_told" in tested.details:
        ours, people = tested.details["facts_told"], tested.details["facts_told_by_people"]
        yield f"- Facts of the test rows whose own words stand in its texts: {ours:.1%}; in people's {people:.1%}."
    if caution := tested.details.get("caution"):
        yield f"- Caution: {caution}."


def _settings(settings: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value!r}" for name, value in settings.items())


def _score(name: str, value: float, interval: Sequence[float]) -> str:
    return f"{name} {value:.3f} ({interval[0]:.3f}–{interval[1]:.3f})"
