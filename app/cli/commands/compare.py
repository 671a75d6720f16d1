"""`chorus compare`: every way to do a task, on your own rows and model, under one budget."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.errors import CliError, Exit
from app.cli.options import Debug, Json
from app.cli.output import Output

if TYPE_CHECKING:
    from app.compare.tasks import TaskFiles

ROWS, BUDGET, MORE = "Rows", "Budget", "What is compared"

Data = Annotated[
    Path | None,
    typer.Option(
        "--data", metavar="FILE", help="Training rows, .jsonl or .csv.", show_default=False, rich_help_panel=ROWS
    ),
]
Dev = Annotated[
    Path | None,
    typer.Option(
        "--dev",
        metavar="FILE",
        help="Rows to choose by. (a tenth of the rows)",
        show_default=False,
        rich_help_panel=ROWS,
    ),
]
Test = Annotated[
    Path | None,
    typer.Option(
        "--test",
        metavar="FILE",
        help="Rows to judge by, asked once. (a fifth of the rows)",
        show_default=False,
        rich_help_panel=ROWS,
    ),
]
ManifestFile = Annotated[
    Path | None,
    typer.Option(
        "--manifest",
        metavar="FILE",
        help='Several tasks: JSON, `{"tasks": [{"name", "data", "dev", "test", "template", "verbalizer"}]}`.',
        show_default=False,
        rich_help_panel=ROWS,
    ),
]
Template = Annotated[
    str | None,
    typer.Option(
        "--template",
        help="As for training; a slot is put in front where there is none.",
        show_default=False,
        rich_help_panel=ROWS,
    ),
]
Verbalizer = Annotated[
    str | None,
    typer.Option("--verbalizer", help="Words of each label, as JSON.", show_default=False, rich_help_panel=ROWS),
]
MaxTrain = Annotated[int, typer.Option("--max-train", min=4, help="Most training rows.", rich_help_panel=ROWS)]
MaxDev = Annotated[int, typer.Option("--max-dev", min=4, help="Most dev rows.", rich_help_panel=ROWS)]
MaxTest = Annotated[int, typer.Option("--max-test", min=4, help="Most test rows.", rich_help_panel=ROWS)]
ModelSource = Annotated[str, typer.Option("--model", help="Backbone: `bundled`, a local folder, or a hub id.")]
Methods = Annotated[
    str | None,
    typer.Option("--methods", help="Names with commas between. (all)", show_default=False, rich_help_panel=MORE),
]
Ablate = Annotated[
    str | None,
    typer.Option(
        "--ablate",
        help="Also plain prompts by length, init, rate, rows, backbone: names with commas between.",
        show_default=False,
        rich_help_panel=MORE,
    ),
]
OtherModels = Annotated[
    list[str] | None,
    typer.Option(
        "--backbone",
        metavar="MODEL",
        help="For --ablate backbone: another model; repeat it.",
        show_default=False,
        rich_help_panel=MORE,
    ),
]
Steps = Annotated[int, typer.Option("--steps", min=1, help="Steps of each run.", rich_help_panel=BUDGET)]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Rows of a step.", rich_help_panel=BUDGET)]
Grid = Annotated[
    str, typer.Option("--grid", help="Multiples of each method's own learning rate.", rich_help_panel=BUDGET)
]
Shots = Annotated[int, typer.Option("--shots", min=1, help="Examples in the context.", rich_help_panel=BUDGET)]
Members = Annotated[int, typer.Option("--members", min=2, help="Prompts of the ensemble.", rich_help_panel=BUDGET)]
Seed = Annotated[int, typer.Option("--seed", min=0, help="The same seed gives the same runs.", rich_help_panel=BUDGET)]
TimeBox = Annotated[
    float | None,
    typer.Option(
        "--time-box", min=0, help="Minutes after which no run begins.", show_default=False, rich_help_panel=BUDGET
    ),
]
Out = Annotated[Path, typer.Option("--out", help="Folder of the results; what is finished there is not run again.")]


def compare(
    data: Data = None,
    dev: Dev = None,
    test: Test = None,
    manifest: ManifestFile = None,
    template: Template = None,
    verbalizer: Verbalizer = None,
    max_train: MaxTrain = 4000,
    max_dev: MaxDev = 200,
    max_test: MaxTest = 1000,
    model: ModelSource = "bundled",
    methods: Methods = None,
    ablate: Ablate = None,
    backbone: OtherModels = None,
    steps: Steps = 200,
    batch_size: BatchSize = 16,
    grid: Grid = "0.3,1,3",
    shots: Shots = 8,
    members: Members = 5,
    seed: Seed = 0,
    time_box: TimeBox = None,
    out: Out = Path("comparison"),
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Compare every method of training with no training, LoRA and fine-tuning, on your rows and your model.

    It needs no running service. Each run is written to the results folder when it ends: interrupted, the same command
    goes on where it was.
    """
    from app.compare.budget import Budget
    from app.compare.run import Wanted, run
    from app.compare.tasks import Limits

    output = Output(as_json=as_json)
    _check_names(methods, ablate)
    wanted = Wanted(
        files=_files(data, dev, test, manifest, template, verbalizer),
        model=model,
        budget=Budget(steps, batch_size, _numbers(grid), seed, shots, members),
        limits=Limits(max_train, max_dev, max_test),
        out=out,
        methods=_names(methods),
        ablate=_names(ablate) or (),
        backbones=tuple(backbone or ()),
        deadline=None if time_box is None else time.monotonic() + 60 * time_box,
    )
    finished = run(wanted, tell=output.note)
    if as_json:
        output.data(json.loads((out / "comparison.json").read_text(encoding="utf-8")))
    else:
        output.say((out / "comparison.md").read_text(encoding="utf-8"))
        output.note(f"In {out}: comparison.md, comparison.json, pictures.")
    if not finished:
        output.note("The time box ended before all was done; the same command goes on.")


def _check_names(methods: str | None, ablate: str | None) -> None:
    from app.compare.ablations import check_axes
    from app.compare.contestants import choose
    from app.errors import InvalidRequest

    try:
        choose(_names(methods))
        check_axes(_names(ablate) or ())
    except InvalidRequest as error:
        raise CliError(error.message, Exit.USAGE) from None


def _files(
    data: Path | None, dev: Path | None, test: Path | None, manifest: Path | None, template: str | None,
    verbalizer: str | None,
) -> list[TaskFiles]:  # fmt: skip
    from app.compare.tasks import Manifest, TaskFiles

    if (data is None) == (manifest is None):
        raise CliError("give either --data or --manifest", Exit.USAGE)
    for file in (data, dev, test, manifest):
        if file is not None and not file.is_file():
            raise CliError(f"there is no file {file}", Exit.USAGE)
    if manifest is not None:
        if dev or test or template or verbalizer:
            raise CliError("with --manifest, each task names its own files, template and verbalizer", Exit.USAGE)
        return Manifest.read(manifest)
    assert data is not None
    name = "".join(char if char.isalnum() or char in "._-" else "-" for char in data.stem).strip("-._")[:64] or "rows"
    words = _words(verbalizer)
    return [TaskFiles(name=name, data=data, dev=dev, test=test, template=template, verbalizer=words)]


def _words(text: str | None) -> dict[str, list[str]] | None:
    if text is None:
        return None
    try:
        found = json.loads(text)
    except ValueError as error:
        raise CliError(f"--verbalizer is not JSON: {error}", Exit.USAGE) from None
    if not isinstance(found, dict):
        raise CliError("--verbalizer is an object: label to list of words", Exit.USAGE)
    return {str(label): [of] if isinstance(of, str) else [str(one) for one in of] for label, of in found.items()}


def _numbers(text: str) -> tuple[float, ...]:
    try:
        found = tuple(sorted({float(part) for part in text.split(",")}))
    except ValueError:
        raise CliError(f"--grid is numbers with commas between, not {text!r}", Exit.USAGE) from None
    if not all(0 < one < 1e6 for one in found):
        raise CliError("--grid: multiples of a learning rate are positive", Exit.USAGE)
    return found


def _names(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(name.strip() for name in text.split(",") if name.strip())
