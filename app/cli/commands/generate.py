"""`chorus generate`: ask one task, once or for every line of the input."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from rich.text import Text

from app.cli.errors import CliError, Exit
from app.cli.options import DEFAULT_URL, Debug, Json, Key, Url
from app.cli.output import Output, bar, clean

LINES_PER_REQUEST = 64
ANSWER = "The answer"

Ref = Annotated[str, typer.Argument(metavar="TASK", help="`task`, `task@version` or `task:alias`.")]
Text_ = Annotated[str | None, typer.Argument(metavar="[TEXT]", help="What to ask; `-`: every line of standard input.")]
Field = Annotated[
    list[str] | None,
    typer.Option("--field", "-f", metavar="NAME=TEXT", help="One field of a task with several; repeat it."),
]
Scores = Annotated[
    bool, typer.Option("--scores/--no-scores", help="Show the probability of every label.", rich_help_panel=ANSWER)
]
Calibrate = Annotated[
    bool,
    typer.Option(
        "--calibrate",
        help="Divide label probabilities by those of inputs without content.",
        rich_help_panel=ANSWER,
    ),
]
Stream = Annotated[bool, typer.Option("--stream", help="Show the text as it comes.", rich_help_panel=ANSWER)]
MaxTokens = Annotated[
    int | None, typer.Option("--max-tokens", min=1, help="Most tokens to write.", rich_help_panel=ANSWER)
]
Temperature = Annotated[
    float | None, typer.Option("--temperature", min=0, max=2, help="0 is greedy.", rich_help_panel=ANSWER)
]
TopP = Annotated[float | None, typer.Option("--top-p", min=0, max=1, help="Nucleus sampling.", rich_help_panel=ANSWER)]
TopK = Annotated[
    int | None, typer.Option("--top-k", min=0, help="Sample among the k likeliest.", rich_help_panel=ANSWER)
]
Stop = Annotated[list[str] | None, typer.Option("--stop", help="End at this text; repeat it.", rich_help_panel=ANSWER)]
Seed = Annotated[int | None, typer.Option("--seed", min=0, help="Makes sampling repeatable.", rich_help_panel=ANSWER)]
Timeout = Annotated[float | None, typer.Option("--timeout", min=0, help="Deadline in seconds.", rich_help_panel=ANSWER)]


def generate(
    task: Ref,
    text: Text_ = None,
    field: Field = None,
    scores: Scores = True,
    calibrate: Calibrate = False,
    stream: Stream = False,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    stop: Stop = None,
    seed: Seed = None,
    timeout_s: Timeout = None,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Ask a task: chorus generate sentiment "What a film!" """
    from app.cli.client import ChorusClient

    out = Output(as_json=as_json)
    options = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "stop": stop or None,
        "seed": seed,
        "timeout_s": timeout_s,
        "scores": scores or None,
        "calibrate": calibrate or None,
    }
    body = {name: value for name, value in options.items() if value is not None}
    with ChorusClient(url, key) as client:
        if text == "-":
            _answer_lines(client, task, body, out)
        elif stream:
            _stream(client, task, {**body, "input": _input(text, field)}, out)
        else:
            _answer(client, task, {**body, "input": _input(text, field)}, out)


def _input(text: str | None, fields: list[str] | None) -> str | dict[str, str]:
    if (text is None) == (not fields):
        raise CliError("give either TEXT or --field NAME=TEXT for each field", Exit.USAGE)
    if text is not None:
        return text
    pairs = [part.partition("=") for part in fields or []]
    wrong = next((name for name, equals, _ in pairs if not equals or not name), None)
    if wrong is not None:
        raise CliError(f"--field {wrong!r} is not of the form NAME=TEXT", Exit.USAGE)
    return {name: value for name, _, value in pairs}


def _answer(client: Any, task: str, body: dict[str, Any], out: Output) -> None:
    answer = client.generate(task, body)
    if out.as_json:
        out.data(answer)
        return
    output = answer["outputs"][0]
    if output.get("scores") and out.live:
        _show_scores(output, out)
    elif output.get("label") is not None:
        out.say(output["label"])
    else:
        out.console.print(Text(clean(output["text"] or "")), soft_wrap=True)
    out.note(_footnote(output))


def _show_scores(output: dict[str, Any], out: Output) -> None:
    """Every label with a bar for its probability; the answer, if any, stands out."""
    ranked = sorted(output["scores"].items(), key=lambda pair: -pair[1])
    width = max(len(clean(label)) for label, _ in ranked)
    for label, share in ranked:
        chosen = label == output["label"]
        name = Text(clean(label).ljust(width), style="bold green" if chosen else "")
        out.console.print(Text.assemble(name, f"  {share:6.1%}  ", (bar(share), "green" if chosen else "dim")))


def _stream(client: Any, task: str, body: dict[str, Any], out: Output) -> None:
    last: dict[str, Any] = {}
    for event in client.stream(task, body):
        last = event
        if out.as_json:
            out.line(event)
        else:
            sys.stdout.write(clean(event.get("text") or ""))
            sys.stdout.flush()
    if not out.as_json:
        sys.stdout.write("\n")
        out.note(_footnote(last))


def _answer_lines(client: Any, task: str, body: dict[str, Any], out: Output) -> None:
    """One answer for each line, in order; a line that fails says so and the rest go on."""
    try:
        lines = [line.rstrip("\n") for line in sys.stdin]
    except UnicodeDecodeError as unread:
        raise CliError(f"standard input cannot be read: {unread}", Exit.USAGE, fix="write it as UTF-8") from None
    failed = 0
    for start in range(0, len(lines), LINES_PER_REQUEST):
        answer = client.generate(task, {**body, "inputs": lines[start : start + LINES_PER_REQUEST]})
        for output in answer["outputs"]:
            error = output.get("error")
            failed += error is not None
            if out.as_json:
                out.line(output)
            else:
                out.say(f"ERROR {error['code']}: {error['message']}" if error else output["label"] or output["text"])
    if failed and out.as_json:  # each failure stands in its line's answer
        raise typer.Exit(Exit.FAILED)
    if failed:
        raise CliError(f"{failed} of {len(lines)} lines failed")


def _footnote(output: dict[str, Any]) -> str:
    usage = output.get("usage") or {}
    parts = [f"{output.get('task')}@{output.get('version')}", str(output.get("finish_reason"))]
    if output.get("abstained"):
        parts.append("no label is likely enough for this task")
    if output.get("agreement") is not None:
        parts.append(f"{output['agreement']:.0%} of the members agree")
    if usage:
        parts.append(
            f"{usage.get('prompt_tokens', 0)} text + {usage.get('virtual_tokens', 0)} virtual tokens"
            + (f" → {usage['completion_tokens']}" if usage.get("completion_tokens") else "")
        )
    return " · ".join(parts)
