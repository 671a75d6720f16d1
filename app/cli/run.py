"""One command line from its words to its exit status: the table of commands, and what becomes of errors."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Annotated

import typer
from typer.core import TyperGroup

from app import __version__
from app.cli.commands import (
    alias,
    bench,
    compare,
    doctor,
    explain,
    fsck,
    generate,
    interchange,
    keys,
    service,
    tasks,
    train,
)
from app.cli.errors import CliError, Exit
from app.cli.output import Output
from app.errors import ChorusError


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"chorus {__version__}")
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version and exit.")
]

HOPELESS = (
    "host",
    "model",
    "model_revision",
    "dtype",
    "device",
    "api_key",
    "otlp_endpoint",
)  # settings that fail the same next time

PANELS: dict[str, tuple[Callable[..., None], ...]] = {
    "Run": (service.up, service.serve, service.worker),
    "Use": (generate.generate, train.train, train.jobs, compare.compare),
    "Manage": (tasks.tasks, tasks.versions, explain.explain, alias.alias),
    "Exchange": (interchange.publish_template, interchange.import_peft, interchange.export_peft, interchange.convert),
    "Check": (doctor.doctor, fsck.fsck, bench.bench),
}


def run(argv: Sequence[str] | None = None) -> int:
    """Run `argv` (the process's own arguments by default) and return the exit status. Never raises."""
    words = list(sys.argv[1:] if argv is None else argv)
    options = words[: words.index("--")] if "--" in words else words
    out = Output(as_json="--json" in options)
    try:
        build().main(args=words, prog_name="chorus")
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else Exit.FAILED
    except CliError as error:
        if "--debug" in options:
            out.errors.print_exception()
        out.error(error)
        return error.exit_code
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    except Exception as error:
        if "--debug" in options:
            out.errors.print_exception()
        explained = _explain(error)
        out.error(explained)
        return explained.exit_code
    return Exit.DONE


def _explain(error: Exception) -> CliError:
    """An error of the service itself speaks for itself; any other is ours to look into."""
    if isinstance(error, ChorusError):
        detail = {"code": error.code, "param": error.param}
        code = Exit.USAGE if error.param in HOPELESS else Exit.FAILED
        return CliError(error.message, code, detail=detail, fix="chorus doctor")
    return CliError(f"unexpected {type(error).__name__}: {error}", fix="run it again with --debug to see where")


def build() -> TyperGroup:
    """The `chorus` command with all its commands."""
    app = typer.Typer(
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(chorus)
    for panel, commands in PANELS.items():
        for command in commands:
            app.command(rich_help_panel=panel)(command)
    app.add_typer(keys.build(), rich_help_panel="Manage")
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    return group


def chorus(version: Version = False) -> None:
    """One frozen language model, many learned prompts: train, version and serve them in one mixed batch."""
