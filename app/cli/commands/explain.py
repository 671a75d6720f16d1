"""`chorus explain`: what a version's vectors look like in the backbone's own words."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from app.cli.errors import CliError, Exit
from app.cli.options import DEFAULT_URL, Debug, Json, Key, Url
from app.cli.output import Output

Ref = Annotated[str, typer.Argument(metavar="TASK", help="`task`, `task@version` or `task:alias`.")]
Words = Annotated[int, typer.Option("--words", min=1, max=50, help="Nearest words of each vector.")]


def explain(
    ref: Ref,
    words: Words = 5,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show each learned vector of a version: its norm and the words nearest to it."""
    from app.cli.client import ChorusClient

    out = Output(as_json=as_json)
    with ChorusClient(url, key) as client:
        task, number = one_version(client, ref)
        found = client.vectors(task, number, words=words)
    if as_json:
        out.data(found)
        return
    out.say(f"{found['task']}@{found['version']}  {found['template']!r}")
    if found["vectors"]:
        rows = [[one["slot"], one["index"], f"{one['norm']:.2f}", _near(one["words"])] for one in found["vectors"]]
        out.table(["SLOT", "VECTOR", "NORM", "NEAREST WORDS (COSINE)"], rows, right=["SLOT", "VECTOR", "NORM"])
        out.note("Norms are in units of the median word's. A low cosine says that the vector is near no word.")
    elif found["prefix"]:
        rows = [[one["index"], f"{one['keys']:.2f}", f"{one['values']:.2f}"] for one in found["prefix"]]
        out.table(["TOKEN", "KEYS", "VALUES"], rows, right=["TOKEN", "KEYS", "VALUES"])
        out.note("Norms of keys and values over all layers; they stand among no words.")
    else:
        out.say("This version is written by hand: it has no vectors.")


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


def _near(words: list[dict[str, Any]]) -> str:
    return "  ".join(f"{word['text']!r} {word['cosine']:.2f}" for word in words)
