"""`chorus explain`: what a version's vectors look like in the backbone's own words, and what each of them is worth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from app.cli.errors import CliError, Exit
from app.cli.options import DEFAULT_URL, Debug, Json, Key, Url
from app.cli.output import Output

Ref = Annotated[str, typer.Argument(metavar="TASK", help="`task`, `task@version` or `task:alias`.")]
Words = Annotated[int, typer.Option("--words", min=1, max=50, help="Nearest words of each vector.")]
Rows = Annotated[
    Path | None,
    typer.Option("--rows", metavar="FILE", help="Labelled rows: score the version without each of its vectors."),
]
Sample = Annotated[int | None, typer.Option("--sample", min=4, max=2000, help="Look at so many of the rows at most.")]


def explain(
    ref: Ref,
    words: Words = 5,
    rows: Rows = None,
    sample: Sample = None,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show each learned vector of a version: its norm, the words nearest to it, and with --rows what it is worth."""
    from app.cli.client import ChorusClient
    from app.cli.commands.train import dataset_name

    if sample is not None and rows is None:
        raise CliError("--sample is of the rows that --rows names", Exit.USAGE)
    out = Output(as_json=as_json)
    with ChorusClient(url, key) as client:
        task, number = one_version(client, ref)
        found = client.vectors(task, number, words=words)
        if rows is not None:
            name = dataset_name(rows)
            client.upload(name, rows)
            body = {"data": {"dataset": name}} | ({"sample": sample} if sample is not None else {})
            found["leave_one_out"] = client.leave_one_out(task, number, body)
    if as_json:
        out.data(found)
        return
    out.say(f"{found['task']}@{found['version']}  {found['template']!r}")
    if found["vectors"]:
        shown = [[one["slot"], one["index"], f"{one['norm']:.2f}", _near(one["words"])] for one in found["vectors"]]
        out.table(["SLOT", "VECTOR", "NORM", "NEAREST WORDS (COSINE)"], shown, right=["SLOT", "VECTOR", "NORM"])
        out.note("Norms are in units of the median word's. A low cosine says that the vector is near no word.")
    elif found["prefix"]:
        shown = [[one["index"], f"{one['keys']:.2f}", f"{one['values']:.2f}"] for one in found["prefix"]]
        out.table(["TOKEN", "KEYS", "VALUES"], shown, right=["TOKEN", "KEYS", "VALUES"])
        out.note("Norms of keys and values over all layers; they stand among no words.")
    else:
        out.say("This version is written by hand: it has no vectors.")
    if rows is not None:
        _show_worth(found["leave_one_out"], out)


def one_version(client: Any, ref: str) -> tuple[str, int]:
    """The one version a reference means. Raises CliError where it is no reference, or an alias means several."""
    from prompt_store.errors import StoreError
    from prompt_store.refs import parse_ref

    try:
        parsed = parse_ref(ref)
    except StoreError as error:
        raise CliError(str(error), Exit.USAGE) from None
    if parsed.version is not None:
        return parsed.task, parsed.version
    found = client.alias(parsed.task, parsed.alias or "prod")
    if found.get("version") is None:
        raise CliError(f"{ref} points to several versions; name one: {parsed.task}@1")
    return parsed.task, int(found["version"])


def _show_worth(found: dict[str, Any], out: Output) -> None:
    """Virtual tokens that help most first: those without which the loss rises most."""
    score, loss = found["score"], found["loss"]
    out.say(f"On {found['rows']} rows: {found['metric']} {score:.4f}, loss {loss:.4f}. Without each:")
    ranked = sorted(found["vectors"], key=lambda one: (loss - one["loss"], one["part"], one["index"]))
    rows = [
        [
            one["part"],
            one["slot"],
            one["index"],
            f"{one['score']:.4f}",
            f"{one['score'] - score:+.4f}",
            f"{one['loss'] - loss:+.4f}",
        ]
        for one in ranked
    ]
    columns = ["PART", "SLOT", "VECTOR", "SCORE WITHOUT", "CHANGE", "LOSS"]
    out.table(columns, rows, right=columns[1:])
    out.note("LOSS is its change: above 0, the vector helps. What hurts or does nothing: chorus train --method prune")


def _near(words: list[dict[str, Any]]) -> str:
    return "  ".join(f"{word['text']!r} {word['cosine']:.2f}" for word in words)
