"""The card's figures: recipe, compute, losses, evaluations by step, prompts tuned on the model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from app.training.metrics import wilson
from pretraining.card.duration import Logged, TimeTaken, time_taken
from pretraining.card.records import Run
from pretraining.card.writing import percent, power, table
from pretraining.recipe import Phase, Probe, TrainRecipe

NONE = "–"
LAST_SHARE = 0.02
"""Of the tokens, at the end: losses are told as means over them."""


def recipe_lines(run: Run) -> list[str]:
    recipe, shape, train = run.recipe, run.recipe.shape, run.recipe.train
    layers = f"{shape.layers} layers a side" if run.family == "seq2seq" else f"{shape.layers} layers"
    facts = [
        ("shape", f"{layers} of {shape.hidden}, {shape.heads} heads, feed-forward {shape.feed_forward}"),
        ("parameters", f"{run.parameters:,}, token embeddings in them once: they are the output's, too"),
        ("vocabulary", f"{run.vocabulary:,}, byte-level BPE learnt from the same texts"),
        ("context", f"{shape.context:,}"),
        ("optimizers", _optimizers(train)),
        ("schedule", f"{_schedule(train)}; gradients clipped to norm {train.clip:g}"),
        ("averaging", f"moving average of the weights, decay {train.average:g} a step"),
        ("precision", "bfloat16 autocast, weights and optimizers in fp32" if train.precision == "bf16" else "fp32"),
        ("seed", str(recipe.seed)),
    ]
    return [
        "## Recipe",
        "",
        f"`{recipe.name}`, from Chorus's `pretraining/`; the choices are argued in its `docs/pretraining.md`.",
        *table(("", ""), facts),
        "The mixture changes by phase. Weights are those of the loss: running text has 1.",
        *table(
            ("phase", "steps", "objective", "rows × tokens", "weight of answers", "of exercises", "mixture, %"),
            _phases(run),
        ),
    ]


def _optimizers(train: TrainRecipe) -> str:
    kind = "Muon" if train.matrices == "muon" else "AdamW"
    momentum = f" momentum {train.momentum:g}," if train.matrices == "muon" else ""
    return (
        f"{kind} for the matrices inside the layers (rate {train.matrix_rate:g},{momentum} weight decay"
        f" {train.matrix_weight_decay:g}), AdamW for the rest (rate {train.other_rate:g})"
    )


def _schedule(train: TrainRecipe) -> str:
    return (
        f"warm-up of {train.warm_up:,} steps, constant, linear decay to {train.final:g} of the rate over the last"
        f" {100 * train.decay:.0f} %"
    )


def _phases(run: Run) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    begin = 0
    for number, (phase, end) in enumerate(zip(run.recipe.phases, run.recipe.phase_ends(), strict=True), 1):
        rows.append(
            (
                str(number),
                f"{begin + 1:,}–{end:,}",
                run.recipe.objective_of(phase),
                f"{phase.rows} × {phase.length}",
                f"{phase.answer_weight:g}",
                f"{phase.task_weight:g}",
                _mixture(phase),
            )
        )
        begin = end
    return rows


def _mixture(phase: Phase) -> str:
    return ", ".join(f"{name} {100 * share:.3g}" for name, share in phase.mixture.items())


def compute_lines(run: Run) -> list[str]:
    taken = time_taken(run.lines, run.tokens)
    whole = "" if run.step == run.recipe.train.steps else f" of the recipe's {run.recipe.train.steps:,}"
    flops = 6.0 * run.parameters * run.tokens
    bound = ": an upper bound, a token passes one side alone" if run.family == "seq2seq" else ""
    return [
        "## Compute",
        *table(
            ("", ""),
            [
                ("tokens", f"{run.tokens:,}"),
                ("steps", f"{run.step:,}{whole}"),
                ("time", f"{_hours(taken.seconds)}{_how_known(taken)}"),
                ("tokens a second", f"{taken.rate:,.0f} on the average, {_median(run.lines):,.0f} the log's median"),
                ("machine", _machines(run.lines)),
                ("arithmetic", f"{power(flops)} FLOP by 6 · N · D, N all parameters{bound}"),
            ],
        ),
        "Time is the clock's while steps were made, on cores that may have had other work beside; compilation and"
        " checkpoints are in it, evaluations and pauses are not, nor is work that was lost and done again.",
    ]


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} hours" if seconds >= 3600 else f"{seconds / 60:.1f} minutes"


def _how_known(taken: TimeTaken) -> str:
    """Which part of the time is no measurement."""
    rest = []
    reckoned = taken.seconds * taken.covered / taken.tokens - taken.measured
    if reckoned > 1e-6 * taken.seconds:
        rest.append(f"{_hours(reckoned)} of it reckoned from logged tokens a second")
    if taken.covered < taken.tokens:
        share = 100 * (1 - taken.covered / taken.tokens)
        rest.append(f"{share:.2g} % of the tokens are in no line of the log and reckoned at the mean rate")
    return f" ({'; '.join(rest)})" if rest else ", all measured"


def _median(lines: list[Logged]) -> float:
    rates = sorted(line.tokens / line.seconds for line in lines)
    return rates[len(rates) // 2]


def _machines(lines: list[Logged]) -> str:
    """By share of the logged tokens, the most first."""
    by: Counter[str] = Counter()
    for line in lines:
        threads = f", {line.threads} thread{'s' if line.threads > 1 else ''}" if line.device == "cpu" else ""
        by[f"{line.device}{threads}" if line.device else "not recorded"] += line.tokens
    if len(by) == 1:
        return next(iter(by))
    return "; ".join(f"{name}: {100 * tokens / by.total():.0f} % of the tokens" for name, tokens in by.most_common())


def loss_lines(run: Run, picture: str) -> list[str]:
    first = run.lines[0]
    last = [line for line in run.lines if line.end > (1 - LAST_SHARE) * run.tokens] or run.lines[-1:]
    rows = []
    for source in run.recipe.sources:
        cells = [
            _number(first.losses.get(source.name)),
            _mean([(line.tokens, line.losses.get(source.name)) for line in last]),
            _mean([(line.tokens, line.answers.get(source.name)) for line in last]),
        ]
        if any(cell != NONE for cell in cells):
            rows.append((source.name, *cells))
    return [
        "## Losses",
        "",
        f"![Loss by source over the tokens trained]({picture})",
        "",
        "Nats a token of training text, unweighted, with the weights of the step (not their average). Exercises repeat"
        " their rows, so low losses there are in part learnt by heart; what counts is the evaluation below.",
        *table(
            ("source", f"first {first.step:,} steps", f"last {100 * LAST_SHARE:.0f} % of the tokens", "answers alone"),
            rows,
        ),
    ]


def _mean(values: list[tuple[int, float | None]]) -> str:
    """Of (tokens, value), by tokens; over those that have a value."""
    found = [(tokens, value) for tokens, value in values if value is not None]
    total = sum(tokens for tokens, _ in found)
    return _number(sum(tokens * one for tokens, one in found) / total if total else None)


def _number(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f}"


def evaluation_lines(run: Run) -> list[str]:
    by_step = {one["step"]: one for one in run.evaluations}
    corpora = list(run.evaluations[-1]["kept_back"])
    probes = run.recipe.probes
    heads = ["step", *(f"{name}, {_unit(run, name)}" for name in corpora), *(f"{one.data}, %" for one in probes)]
    rows = [["most common label", *(NONE for _ in corpora), *(percent(share) for share in run.majority)]]
    for step, one in sorted(by_step.items()):
        kept = [_kept(one["kept_back"].get(name)) for name in corpora]
        rows.append([f"{step:,}", *kept, *(_probe(one, probe) for probe in probes)])
    return [
        "## Evaluation",
        "",
        "With averaged weights: text kept back, and the right label's word among the labels' words for dev rows asked"
        " in a wording of pretraining, without a tuned prompt; accuracy with its 95 % interval (Wilson).",
        *table(heads, rows),
        *table(("probe", "asked as", "dev rows"), [_asked(run, probe) for probe in probes]),
    ]


def _unit(run: Run, name: str) -> str:
    return "bits a byte" if "bits_per_byte" in run.evaluations[-1]["kept_back"][name] else "nats a token"


def _kept(values: Mapping[str, float] | None) -> str:
    return NONE if values is None else f"{values.get('bits_per_byte', values['nats_per_token']):.3f}"


def _probe(evaluation: Mapping[str, Any], probe: Probe) -> str:
    found = _found(evaluation, probe)
    return NONE if found is None else percent(found["accuracy"], wilson(found["accuracy"], found["rows"]))


def _found(evaluation: Mapping[str, Any], probe: Probe) -> Mapping[str, Any] | None:
    asked = [one for one in evaluation["probes"] if (one["data"], one["wording"]) == (probe.data, probe.wording)]
    return asked[0] if asked else None


def _asked(run: Run, probe: Probe) -> tuple[str, ...]:
    found = _found(run.evaluations[-1], probe)
    words = ", ".join(f"`{word.strip()}`" for word in probe.words.values())
    wording = probe.wording.replace("\n", "⏎")
    return probe.data, f"`{wording}` → {words}", NONE if found is None else f"{found['rows']:,}"


def prompt_lines(run: Run) -> list[str]:
    """Nothing where no prompts are given."""
    rows = []
    for starter in run.prompts:
        for one in starter.card:
            if one.split == "test":
                alone = [
                    percent(one.baselines[key]) if key in one.baselines else NONE for key in ("zero_shot", "majority")
                ]
                data = str(one.details.get("data", NONE))
                rows.append((starter.task, data, one.metric, f"{one.n:,}", percent(one.score, one.interval), *alone))
    if not rows:
        return []
    return [
        "## Prompts tuned on it",
        "",
        "The starter prompts that Chorus ships with it, trained by `/v1/train` and chosen on dev rows. In percent,"
        " with 95 % intervals.",
        *table(("task", "test rows of", "metric", "rows", "tuned prompt", "words alone", "most common label"), rows),
    ]
