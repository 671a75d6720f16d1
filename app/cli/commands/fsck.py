"""`chorus fsck`: compare the registry in Redis with the blobs and the record files beside them, and repair it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.config import load_settings
from app.cli.errors import CliError, Exit
from app.cli.options import DataDir, Debug, Json
from app.cli.output import Output

if TYPE_CHECKING:
    from app.settings import Settings

Rebuild = Annotated[bool, typer.Option("--rebuild", help="Write the registry anew from the files beside the blobs.")]


def fsck(rebuild: Rebuild = False, data_dir: DataDir = None, as_json: Json = False, debug: Debug = False) -> None:
    """Check every blob and record. Works beside a running service, and without one."""
    from prompt_store import PromptStore
    from prompt_store.errors import StoreError, StoreUnavailable

    out = Output(as_json=as_json)
    settings = load_settings(data_dir=data_dir)
    with _redis_of(settings) as url:
        try:
            with PromptStore.open(url, settings.blobs, blobs_url=settings.blobs_url) as store:
                report = store.rebuild() if rebuild else store.fsck()
        except StoreError as error:
            code = Exit.UNREACHABLE if isinstance(error, StoreUnavailable) else Exit.FAILED
            raise CliError(error.message, code, fix="chorus doctor") from error
    _show(report.model_dump(mode="json"), out, rebuilt=rebuild)


@contextmanager
def _redis_of(settings: Settings) -> Iterator[str]:
    """The registry's server: the configured one, the one that runs on the data folder, or one started for the check."""
    from app.supervisor.embedded import EmbeddedServer, ServerFailed, running_url, server_folder
    from app.supervisor.lock import FolderBusy

    folder = server_folder(settings.data_dir)
    url = settings.redis_url or running_url(folder)
    if url is not None:
        yield url
        return
    if not settings.data_dir.is_dir():
        raise CliError(f"there is no data folder {settings.data_dir}", Exit.USAGE, fix="give one: --data-dir")
    try:
        with EmbeddedServer(folder, log_dir=settings.data_dir / "logs") as server:
            yield server.url
    except (ServerFailed, FolderBusy) as error:
        raise CliError(str(error), Exit.FAILED, fix="chorus doctor") from error


def _show(report: dict[str, Any], out: Output, *, rebuilt: bool) -> None:
    """Raises CliError when something is left to repair."""
    problems = report["problems"]
    left = [problem for problem in problems if not problem["repaired"]]
    if out.as_json:
        out.data(report)
    else:
        counts = ", ".join(count(report[name], name.removesuffix("s")) for name in ("tasks", "versions", "blobs"))
        out.say(f"{counts}, epoch {report['epoch']}")
        if problems:
            rows = [
                [one["kind"], one["subject"], one["detail"], "yes" if one["repaired"] else "no"] for one in problems
            ]
            out.table(["PROBLEM", "WHERE", "DETAIL", "REPAIRED"], rows)
        if report["orphans"]:
            out.say(f"{count(len(report['orphans']), 'blob')} without a version, removed after the grace time")
    if left and out.as_json:
        raise typer.Exit(Exit.FAILED)
    if left:
        fix = "restore these blobs from a copy, or retire their versions" if rebuilt else "chorus fsck --rebuild"
        raise CliError(count(len(left), "problem"), Exit.FAILED, fix=fix)
    out.note("Everything agrees." if not problems else "All of it is repaired.")


def count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
