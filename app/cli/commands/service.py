"""`chorus up`, `serve`, `worker`: the processes of the service."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.config import load_settings
from app.cli.errors import CliError, Exit
from app.cli.options import DataDir, Debug, Host, Json, Model, Port
from app.cli.output import Output

if TYPE_CHECKING:
    from app.settings import Settings

NO_REDIS = "no Redis: CHORUS_REDIS_URL is not set, and no `chorus up` runs on this data folder"
NO_REDIS_FIX = "chorus up brings its own; or set CHORUS_REDIS_URL=redis://host:6379/0"

PR_SET_NAME = 15  # of prctl(2); the kernel keeps 15 characters

Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show all log lines here, not only warnings.")]


def _show_as(name: str) -> None:
    """Name this process as `ps` and `top` show it. Linux only; a nicety, so nothing depends on it."""
    if sys.platform.startswith("linux"):
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_NAME, name.encode(), 0, 0, 0)


def up(
    host: Host = None,
    port: Port = None,
    data_dir: DataDir = None,
    model: Model = None,
    verbose: Verbose = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Start everything on this machine: embedded server, API, worker. Ctrl-C stops all three."""
    from app.supervisor.up import CannotStart, run_up

    _show_as("chorus up")
    out = Output(as_json=as_json)
    settings = load_settings(host=host, port=port, data_dir=data_dir, model=model)
    try:
        console = out.errors if as_json else out.console
        run_up(settings, console, verbose=verbose, announce=out.line if as_json else None)
    except CannotStart as error:
        code = Exit.FAILED if error.after_start else Exit.USAGE
        raise CliError(str(error), code, fix=error.fix) from error


def serve(
    host: Host = None,
    port: Port = None,
    data_dir: DataDir = None,
    model: Model = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Run the API alone, beside a Redis of your own (--json: JSON log lines)."""
    settings = _with_redis(
        load_settings(host=host, port=port, data_dir=data_dir, model=model, log_format="json" if as_json else None)
    )
    from app.main import serve as serve_api

    _show_as("chorus serve")
    serve_api(settings)


def worker(data_dir: DataDir = None, model: Model = None, as_json: Json = False, debug: Debug = False) -> None:
    """Run a training worker alone, beside a Redis of your own (--json: JSON log lines)."""
    settings = _with_redis(load_settings(data_dir=data_dir, model=model, log_format="json" if as_json else None))
    from app.training.worker import run_worker

    _show_as("chorus worker")
    raise typer.Exit(run_worker(settings))


def _with_redis(settings: Settings) -> Settings:
    """`settings` with a Redis: the one they name, or the embedded one of a `chorus up` on the same data folder."""
    if settings.redis_url is not None:
        return settings
    from app.supervisor.embedded import running_url, server_folder

    url = running_url(server_folder(settings.data_dir))
    if url is None:
        raise CliError(NO_REDIS, Exit.USAGE, fix=NO_REDIS_FIX)
    return settings.model_copy(update={"redis_url": url})
