"""A prompt for sst2 on each family: the backbone, its T5 without and with adaptation to language modelling, its BERT.

    python -m benchmarks.siblings --data DIR [--work .pretraining] [--causal bundled] [--write docs/results/siblings.md]

WORK holds what `python -m pretraining` made of the siblings' recipes (docs/pretraining.md): `t5/export-spans`,
`t5/export` and `bert/export`. Each is tuned by the code that `/v1/train` runs, with the same rows, steps and choice of
the learning rate on dev rows; the test rows are asked once. What is finished is kept in WORK/prompts, and the same
command goes on.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from app.backbone import Backbone, BackboneConfig, load_backbone
from app.backbone.source import locate
from app.compare.budget import Budget
from app.compare.cells import Cells
from app.compare.comparison import Comparison
from app.compare.contestants import choose
from app.compare.tasks import Limits, TaskFiles, TaskRows, read_task
from benchmarks.statistics import conditions, majority_share, percent

DATA_SET = "sst2"
ASKED = "<prompt:20>Review: {text}\nSentiment:"
WORDS = {"negative": [" negative"], "positive": [" positive"]}
BUDGET = Budget(steps=300, batch_size=32)
LIMITS = Limits(train=8000, dev=800, test=10_000)
TUNED, BARE = "prompt_tuning", "zero_shot"
COLUMNS = (
    "model", "family", "parameters", "tokens trained", "words alone", "prompt, dev", "prompt, test", "rate ×", "seconds"
)  # fmt: skip


@dataclass(frozen=True)
class Sibling:
    """`folder` below WORK; the backbone has none. `template`: where an answer stands differs by family."""

    name: str
    title: str
    folder: str
    template: str = ASKED


SIBLINGS = (
    Sibling("causal", "decoder, the backbone itself", ""),
    Sibling("t5-spans", "encoder-decoder, span corruption alone", "t5/export-spans"),
    Sibling("t5", "encoder-decoder, adapted to language modelling", "t5/export"),
    Sibling("bert", "masked, BERT", "bert/export", f"{ASKED}<mask>"),
)


@dataclass(frozen=True)
class Found:
    """Of one model; `hits` of the test rows with the tuned prompt, `bare` with the template's words alone."""

    title: str
    family: str
    parameters: int
    tokens: int | None
    rows: int
    hits: int
    bare: int
    dev: float
    times: float
    seconds: float


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="folder with the data sets")
    parser.add_argument("--work", type=Path, default=Path(".pretraining"), help="folder with the siblings' runs")
    parser.add_argument("--causal", default="bundled", help="the backbone: a folder, or bundled")
    parser.add_argument("--write", type=Path, default=Path("docs/results/siblings.md"))
    parser.add_argument("--steps", type=int, default=BUDGET.steps, help="of each run")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    budget = Budget(steps=arguments.steps, batch_size=BUDGET.batch_size)
    sources = sources_in(arguments.work, arguments.causal)
    found = []
    labels: list[str] = []
    for sibling in SIBLINGS:
        of, task = tuned(sibling, sources[sibling.name], arguments.data, arguments.work / "prompts", budget)
        labels = [answer for (answer,) in task.references]
        found.append(of)
        tell(f"{sibling.name}: {percent(of.hits, of.rows)}")
    arguments.write.write_text(page(found, labels, budget), encoding="utf-8")


def tell(message: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {message}", flush=True)


def sources_in(work: Path, causal: str) -> dict[str, str]:
    """Where each model is. Ends the command if one is not there, before anything is run."""
    sources = {of.name: str(work / of.folder) if of.folder else causal for of in SIBLINGS}
    missing = [of.folder for of in SIBLINGS if of.folder and not (work / of.folder / "config.json").is_file()]
    if missing:
        raise SystemExit(f"not in {work}: {', '.join(missing)}; docs/pretraining.md tells how they are made")
    return sources


def tuned(sibling: Sibling, source: str, data: Path, work: Path, budget: Budget) -> tuple[Found, TaskRows]:
    """Words alone, then a prompt at each rate of the grid; the best by dev rows answers the test rows."""
    load = loader(source)
    backbone = load()
    task = read_task(files_of(sibling, data), backbone.family, LIMITS, seed=budget.seed)
    about = {"model": backbone.name, "fingerprint": backbone.fingerprint, "budget": budget.describe()}
    cells = Cells(work / sibling.name, about)
    Comparison(load, [task], choose([BARE, TUNED]), budget, cells, tell).run()
    record, bare = (cells.get("result", task.name, name) for name in (TUNED, BARE))
    assert record is not None
    assert bare is not None
    if "left_out" in record:
        raise SystemExit(f"{sibling.name}: {record['left_out']}")
    found = Found(
        title=sibling.title,
        family=backbone.family,
        parameters=sum(parameter.numel() for parameter in backbone.model.parameters()),
        tokens=tokens_trained(source),
        rows=len(task.test),
        hits=hits(record, task),
        bare=hits(bare, task),
        dev=record["dev"],
        times=record["times"],
        seconds=record["grid_seconds"],
    )
    return found, task


def loader(source: str) -> Callable[[], Backbone]:
    return lambda: load_backbone(BackboneConfig(source, dtype="float32"))


def files_of(sibling: Sibling, data: Path) -> TaskFiles:
    folder = data / DATA_SET
    return TaskFiles(
        name=DATA_SET,
        data=folder / "train.jsonl",
        dev=folder / "dev.jsonl",
        test=folder / "test.jsonl",
        template=sibling.template,
        verbalizer=WORDS,
    )


def hits(record: dict[str, Any], task: TaskRows) -> int:
    return sum(said in right for said, right in zip(record["given"], task.references, strict=True))


def tokens_trained(source: str) -> int | None:
    """What the model's folder says of its pretraining, if anything."""
    file = locate(source, None, cache=None)[1] / "provenance.json"
    return int(json.loads(file.read_bytes())["tokens_trained"]) if file.is_file() else None


def page(found: Sequence[Found], labels: Sequence[str], budget: Budget) -> str:
    """The Markdown page."""
    lines = [
        "# Families side by side",
        "",
        f"`python -m benchmarks.siblings`; {conditions()}. Prompts of 20 vectors for {DATA_SET}, by the training of"
        f" `/v1/train`: {budget.steps} steps of {budget.batch_size} rows, the learning rate the best of"
        f" {', '.join(f'{times:g}' for times in budget.grid)} times its own on the dev rows. {len(labels):,} test rows,"
        f" 95 % intervals (Wilson); the most common label has {majority_share(labels)}.",
        "",
        "The models have one tokenizer and texts of one kind ([how they are made](../pretraining.md)), but not one size"
        " or number of steps: the table shows that each family works, not which is best.",
        "",
        f"| {' | '.join(COLUMNS)} |",
        "|" + "---|" * len(COLUMNS),
    ]
    for one in found:
        cells = (
            one.title,
            f"`{one.family}`",
            f"{one.parameters / 1e6:.1f} M",
            "not recorded" if one.tokens is None else f"{one.tokens / 1e6:.1f} M",
            percent(one.bare, one.rows),
            f"{100 * one.dev:.1f} %",
            percent(one.hits, one.rows),
            f"{one.times:g}",
            f"{one.seconds:.0f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    by_title = {one.title: one for one in found}
    without, adapted = (by_title.get(of.title) for of in SIBLINGS[1:3])
    if without and adapted:
        gain = 100 * (adapted.hits / adapted.rows - without.hits / without.rows)
        lines += [
            "",
            f"Adaptation to language modelling changes the encoder-decoder's accuracy by {gain:+.1f} points. Lester et"
            " al. (2021) found that all but their largest model needed it; unlike theirs, both of these also answered"
            " exercises in pretraining.",
        ]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
