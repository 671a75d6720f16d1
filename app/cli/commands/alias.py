"""`chorus alias`: where the movable names of a task point, and moving them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from app.cli.commands.tasks import when
from app.cli.errors import CliError, Exit
from app.cli.options import DEFAULT_URL, Debug, Json, Key, Url
from app.cli.output import Output
from app.cli.targets import in_words, target_body


def alias(
    task: Annotated[str, typer.Argument(metavar="TASK", help="Name of a task.")],
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Name of the alias, as `prod`.")] = None,
    version: Annotated[int | None, typer.Argument(metavar="VERSION", min=1, help="Version to point it to.")] = None,
    split: Annotated[
        list[str] | None,
        typer.Option(
            "--split",
            metavar="VERSION=WEIGHT",
            show_default=False,
            help="Point it to several versions, one of which answers each row: once for each, as 3=0.9.",
        ),
    ] = None,
    ensemble: Annotated[
        str | None,
        typer.Option(
            "--ensemble",
            metavar="VERSIONS",
            show_default=False,
            help="Point it to several versions that answer each row together, as 1,2,3.",
        ),
    ] = None,
    mode: Annotated[
        Literal["vote", "mean"] | None,
        typer.Option("--mode", show_default=False, help="How an ensemble answers; without it, by mean probability."),
    ] = None,
    expect: Annotated[
        int | None,
        typer.Option(
            "--expect",
            min=0,
            show_default=False,
            help="Move only if the alias still has this revision; 0: only if it is new. "
            "Without it, the revision read just before.",
        ),
    ] = None,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Point an alias to a version, a split or an ensemble (rollback is moving it back); else show where it points."""
    from app.cli.client import ChorusClient

    out = Output(as_json=as_json)
    target = target_body(version, split or (), ensemble, mode)
    if target is not None and name is None:
        raise CliError("which alias? chorus alias TASK NAME …", Exit.USAGE)
    with ChorusClient(url, key) as client:
        if target is None or name is None:
            _show(out, client, task, name)
        else:
            _move(out, client, task, name, target, expect)


def _move(out: Output, client: Any, task: str, name: str, target: dict[str, Any], expect: int | None) -> None:
    before = _current(client, task, name)
    revision = int(before["revision"]) if before else 0
    after = client.move_alias(task, name, target, expected=revision if expect is None else expect)
    if out.as_json:
        out.data(after)
        return
    now = in_words(after)
    was = f" (was {in_words(before)})" if before else ""
    out.say(f"{task}:{name} is now {f'version {now}' if after.get('version') else now}{was}", style="green")


def _show(out: Output, client: Any, task: str, name: str | None) -> None:
    names = [name] if name is not None else sorted(client.task(task)["aliases"])
    found = [client.alias(task, one) for one in names]
    if out.as_json:
        out.data(found if name is None else found[0])
        return
    rows = [[one["name"], in_words(one), one["revision"], when(one["updated_at"])] for one in found]
    out.table(["ALIAS", "POINTS TO", "REVISION", "MOVED"], rows, right=["REVISION"])


def _current(client: Any, task: str, name: str) -> dict[str, Any] | None:
    try:
        return dict(client.alias(task, name))
    except CliError as error:
        if error.exit_code == Exit.REFUSED and error.detail.get("code") == "alias_not_found":
            return None
        raise
