"""`chorus bench`: a load of your own tasks and rows against a running service, and what it bore."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.errors import CliError, Exit
from app.cli.options import DEFAULT_URL, Debug, Json, Key, Url
from app.cli.output import Output

if TYPE_CHECKING:
    from app.cli.bench.measure import Plan, Progress
    from app.cli.bench.workload import Target, Workload
    from app.cli.client import ChorusClient

ASKED = "What is asked"
LOAD = "How fast"
CLIENTS = 8
SECONDS = 10.0
TRIED_FIRST = 16  # tasks that are asked once before any load, so that a plain mistake is a plain error

Task = Annotated[
    list[str] | None,
    typer.Option(
        "--task",
        metavar="TASK[=WEIGHT]",
        help="A task, `task@version` or `task:alias`, and its share of the rows; repeat it. (all tasks)",
        rich_help_panel=ASKED,
    ),
]
Data = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="FILE",
        help="Rows to ask, .jsonl or .csv, fields as for training. (made-up texts)",
        show_default=False,
        rich_help_panel=ASKED,
    ),
]
Words = Annotated[
    int, typer.Option("--words", min=1, max=10_000, help="Length of made-up texts.", rich_help_panel=ASKED)
]
Rows = Annotated[int, typer.Option("--rows", min=1, max=1024, help="Rows in one request.", rich_help_panel=ASKED)]
MaxTokens = Annotated[
    int | None,
    typer.Option(
        "--max-tokens", min=1, help="Most tokens to write. (each task's own)", show_default=False, rich_help_panel=ASKED
    ),
]
Stream = Annotated[
    bool | None,
    typer.Option(
        "--stream/--no-stream",
        help="Stream generated text, which times its tokens. (yes, if a request has one row)",
        show_default=False,
        rich_help_panel=ASKED,
    ),
]
Clients = Annotated[
    int | None,
    typer.Option(
        "--clients",
        min=1,
        max=1024,
        help=f"Closed loop: so many clients, each waits for its answer. ({CLIENTS})",
        show_default=False,
        rich_help_panel=LOAD,
    ),
]
Rate = Annotated[
    float | None,
    typer.Option(
        "--rate",
        min=0.001,
        max=100_000,
        help="Open loop: so many requests a second at random times, whatever becomes of them.",
        show_default=False,
        rich_help_panel=LOAD,
    ),
]
Duration = Annotated[
    float | None,
    typer.Option(
        "--duration",
        min=0.1,
        help=f"Seconds to go on for. ({SECONDS:g}, without --requests)",
        show_default=False,
        rich_help_panel=LOAD,
    ),
]
Requests = Annotated[
    int | None,
    typer.Option("--requests", min=1, help="Requests to send.", show_default=False, rich_help_panel=LOAD),
]
WarmUp = Annotated[
    float, typer.Option("--warm-up", min=0, help="Seconds of load before it counts.", rich_help_panel=LOAD)
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="The same seed asks the same.", rich_help_panel=LOAD)]


def bench(
    task: Task = None,
    data: Data = None,
    words: Words = 32,
    rows: Rows = 1,
    max_tokens: MaxTokens = None,
    stream: Stream = None,
    clients: Clients = None,
    rate: Rate = None,
    duration: Duration = None,
    requests: Requests = None,
    warm_up: WarmUp = 2.0,
    seed: Seed = 0,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure your tasks under your load: throughput, latency, how rows shared steps, padding, cache hits.

    It loads the service it is aimed at with real work. The load generator takes processor time of its own, and says
    how much: beside a service on the same cores, figures are those of both together.
    """
    from app.cli.bench.measure import Plan
    from app.cli.bench.report import show
    from app.cli.bench.workload import Workload
    from app.cli.client import ChorusClient

    out = Output(as_json=as_json)
    _check(clients, rate, rows, stream)
    seconds = duration if duration is not None or requests is not None else SECONDS
    plan = Plan(clients or CLIENTS, rate, seconds, requests, warm_up, seed)
    options = {} if max_tokens is None else {"max_tokens": max_tokens}
    with ChorusClient(url, key) as client:
        targets = _targets(client, task or [], data)
        workload = Workload(
            targets, rows=rows, words=words, stream=rows == 1 and stream is not False, options=options, seed=seed
        )
        for target in targets[:TRIED_FIRST]:
            client.generate(target.ref, workload.trial(target))
        head = {"url": client.url, "backbone": client.health().get("backbone", {})}
    found = {**head, "load": _load_of(plan, workload, data), **_measured(client.url, key, workload, plan, out)}
    if as_json:
        out.data(found)
    else:
        show(found, out)
    if not found["requests"]["answered"]:
        raise typer.Exit(Exit.FAILED)


def _check(clients: int | None, rate: float | None, rows: int, stream: bool | None) -> None:
    if clients is not None and rate is not None:
        raise CliError("--clients waits for answers, --rate does not: give one of them", Exit.USAGE)
    if rows > 1 and stream:
        raise CliError("a stream answers one row", Exit.USAGE, fix="leave out --rows or --stream")


def _targets(client: ChorusClient, asked: Sequence[str], data: Path | None) -> list[Target]:
    """The tasks to ask: those named, or all that answer to their bare name. Raises CliError."""
    from app.cli.bench.workload import Target, parse_weights, read_inputs, rows_for

    weights = parse_weights(asked)
    given = None if data is None else read_inputs(data)
    known = {task["name"]: task for task in client.tasks()}
    weights = weights or {name: 1.0 for name, task in known.items() if "prod" in task["aliases"]}
    if not weights:
        raise CliError("no task has a version to ask", fix="chorus train FILE.jsonl --task NAME --watch")
    targets = []
    for ref, weight in weights.items():
        name = ref.partition("@")[0].partition(":")[0]
        found = known.get(name)
        if found is None:
            raise CliError(
                f"there is no task {name!r}", Exit.REFUSED, fix="chorus tasks", detail={"code": "task_not_found"}
            )
        fields = tuple(found["fields"])
        rows = None if given is None else rows_for(ref, fields, given)
        targets.append(Target(ref, weight, fields, streams=found["labels"] is None, rows=rows))
    return targets


def _load_of(plan: Plan, workload: Workload, data: Path | None) -> dict[str, Any]:
    return {
        "clients": None if plan.rate is not None else plan.clients,
        "rate_per_s": plan.rate,
        "duration_s": plan.seconds,
        "requests": plan.requests,
        "warm_up_s": plan.warm_up_s,
        "rows_per_request": workload.rows,
        "stream": workload.streams,
        "seed": plan.seed,
        "data": None if data is None else data.name,
        "words": workload.words if data is None else None,
        "options": dict(workload.options),
        "tasks": {target.ref: target.weight for target in workload.targets},
    }


def _measured(url: str, key: str | None, workload: Workload, plan: Plan, out: Output) -> dict[str, Any]:
    from app.cli.bench.measure import measure

    with _live_line(out) as tell:
        return asyncio.run(measure(url, key, workload, plan, tell=tell))


def _live_line(out: Output) -> AbstractContextManager[Callable[[Progress], None] | None]:
    """One line that is redrawn while somebody watches a terminal; nothing otherwise."""
    if not out.live:
        return nullcontext()
    from app.cli.bench.line import LiveLine

    return LiveLine(out.console)
