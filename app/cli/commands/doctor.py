"""`chorus doctor`: everything that has to be right, looked at once, each failure with its fix."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer
from rich.text import Text

from app.cli.checks import Check
from app.cli.config import load_settings
from app.cli.errors import Exit
from app.cli.options import DataDir, Debug, Host, Json, Model, Port
from app.cli.output import Output

if TYPE_CHECKING:
    from app.settings import Settings

MARKS = {"ok": ("✓", "green"), "warn": ("!", "yellow"), "fail": ("✗", "bold red")}


def doctor(
    host: Host = None,
    port: Port = None,
    data_dir: DataDir = None,
    model: Model = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Check this machine and its settings; each failure comes with the one command that fixes it."""
    out = Output(as_json=as_json)
    settings = load_settings(host=host, port=port, data_dir=data_dir, model=model)
    found: list[Check] = []
    for check in _examine(settings):
        found.append(check)
        if not as_json:
            _show(check, out)
    failed = [check for check in found if check.state == "fail"]
    if as_json:
        out.data({"ok": not failed, "checks": [asdict(check) for check in found]})
    elif not failed:
        out.say("Ready: chorus up", style="bold green")
    raise typer.Exit(Exit.FAILED if failed else Exit.DONE)


def _examine(settings: Settings) -> Iterator[Check]:
    from app.cli.checks import keys, machine, model, objects, redis

    yield machine.check_python()
    yield machine.check_data_dir(settings)
    yield machine.check_disk(settings)
    yield machine.check_port(settings)
    yield from redis.check_redis(settings)
    yield from objects.check_objects(settings)
    yield from keys.check_keys(settings)
    torch = model.check_torch(settings)
    yield torch
    if torch.state != "fail":
        yield from model.check_model(settings)


def _show(check: Check, out: Output) -> None:
    mark, style = MARKS[check.state]
    out.console.print(Text.assemble((mark, style), f" {check.name:<16} ", check.found), soft_wrap=True)
    if check.fix:
        out.console.print(Text.assemble(" " * 19, ("fix: ", "bold"), check.fix), soft_wrap=True)
