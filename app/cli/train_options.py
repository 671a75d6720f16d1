"""The options of `chorus train`, with the API's own names where a word would do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

METHOD = "How it learns"
PUBLISH = "What becomes of it"

File = Annotated[
    Path, typer.Argument(metavar="FILE", help="Rows as .jsonl or .csv: the task's fields, and `label` or `output`.")
]
Task = Annotated[str, typer.Option("--task", help="The task; one that does not exist is made from the rows.")]
Watch = Annotated[bool, typer.Option("--watch", help="Show the progress until the job ends.")]
Validation = Annotated[
    Path | None, typer.Option("--validation", metavar="FILE", help="Rows to select and score by (else some of FILE's).")
]
Dataset = Annotated[
    str | None, typer.Option("--dataset", help="Name for the uploaded rows (else the file's).", show_default=False)
]

Template = Annotated[
    str | None, typer.Option("--template", help="Text with {fields} and <prompt:N>.", rich_help_panel=METHOD)
]
Verbalizer = Annotated[
    str | None,
    typer.Option(
        "--verbalizer",
        metavar="JSON",
        help='{"label": [" word", …], …}, or `search`: the model finds them.',
        rich_help_panel=METHOD,
    ),
]
Method = Annotated[
    str | None,
    typer.Option(
        "--method", metavar="TYPE", help="The method, such as prompt_tuning or prefix_tuning.", rich_help_panel=METHOD
    ),
]
MethodOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--method-option",
        metavar="KEY=VALUE",
        help="An option of the method; the value as JSON, or else as text. Repeat it.",
        rich_help_panel=METHOD,
    ),
]
Init = Annotated[
    Literal["random", "vocab", "text", "labels", "prompt", "zero"] | None,
    typer.Option("--init", help="Where the vectors start.", rich_help_panel=METHOD),
]
InitText = Annotated[str | None, typer.Option("--init-text", help="The text of --init text.", rich_help_panel=METHOD)]
Reparametrization = Annotated[
    Literal["none", "residual_mlp", "mlp"] | None,
    typer.Option("--reparametrization", help="Learn through a network, folded away.", rich_help_panel=METHOD),
]
VirtualTokens = Annotated[
    int | None, typer.Option("--virtual-tokens", min=1, help="Number of vectors.", rich_help_panel=METHOD)
]
Epochs = Annotated[float | None, typer.Option("--epochs", help="Passes over the rows.", rich_help_panel=METHOD)]
BatchSize = Annotated[int | None, typer.Option("--batch-size", min=1, help="Rows in a step.", rich_help_panel=METHOD)]
LearningRate = Annotated[
    float | None,
    typer.Option(
        "--learning-rate", help="Peak of the vectors' rate (else set by the embedding's RMS).", rich_help_panel=METHOD
    ),
]
Seed = Annotated[int | None, typer.Option("--seed", min=0, help="Makes the run repeatable.", rich_help_panel=METHOD)]

Sweep = Annotated[
    list[str] | None,
    typer.Option(
        "--sweep",
        metavar="KEY=A,B,…",
        help="Values of learning_rate, seed, num_virtual_tokens, init, method or template: every combination learns, "
        "together. As a list, or as JSON. Repeat it.",
        rich_help_panel=METHOD,
    ),
]
KeepAll = Annotated[bool, typer.Option("--keep-all", help="No member of a sweep stops early.", rich_help_panel=METHOD)]

Publish = Annotated[
    Literal["always", "better_than_current", "never"],
    typer.Option("--publish", help="When the alias moves to the new version.", rich_help_panel=PUBLISH),
]
Alias = Annotated[str, typer.Option("--alias", help="The alias that moves.", rich_help_panel=PUBLISH)]
GateMetric = Annotated[
    str | None,
    typer.Option(
        "--gate-metric", help="What `better_than_current` compares by (else the task's).", rich_help_panel=PUBLISH
    ),
]
MinGain = Annotated[
    float | None,
    typer.Option("--min-gain", min=0.0, help="`better_than_current` wants more than this.", rich_help_panel=PUBLISH),
]
Confidence = Annotated[
    float | None,
    typer.Option(
        "--confidence",
        min=0.5,
        max=0.999,
        help="Share of bootstrap resamples that must agree.",
        rich_help_panel=PUBLISH,
    ),
]
TopK = Annotated[
    int | None,
    typer.Option(
        "--top-k",
        min=2,
        max=8,
        help="Publish so many of a sweep's best, together: the alias answers by their vote.",
        rich_help_panel=PUBLISH,
    ),
]
IdempotencyKey = Annotated[
    str | None,
    typer.Option("--idempotency-key", help="The same key again finds the same job.", rich_help_panel=PUBLISH),
]
