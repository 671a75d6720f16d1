"""`chorus train` and `chorus jobs`: send rows, start a job, watch, list and cancel jobs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli import train_options as o
from app.cli.errors import CliError, Exit
from app.cli.options import DEFAULT_URL, Debug, Json, Key, Url
from app.cli.output import Output
from app.cli.sweep import parse_sweep

if TYPE_CHECKING:
    from app.cli.client import ChorusClient


def train(
    file: o.File,
    task: o.Task,
    watch: o.Watch = False,
    validation: o.Validation = None,
    dataset: o.Dataset = None,
    template: o.Template = None,
    verbalizer: o.Verbalizer = None,
    method: o.Method = None,
    method_option: o.MethodOptions = None,
    init: o.Init = None,
    init_text: o.InitText = None,
    reparametrization: o.Reparametrization = None,
    virtual_tokens: o.VirtualTokens = None,
    epochs: o.Epochs = None,
    batch_size: o.BatchSize = None,
    learning_rate: o.LearningRate = None,
    seed: o.Seed = None,
    sweep: o.Sweep = None,
    keep_all: o.KeepAll = False,
    publish: o.Publish = "always",
    alias: o.Alias = "prod",
    gate_metric: o.GateMetric = None,
    min_gain: o.MinGain = None,
    confidence: o.Confidence = None,
    top_k: o.TopK = None,
    idempotency_key: o.IdempotencyKey = None,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Train a prompt for a task from a file of rows; the running service serves it when it is done."""
    from app.cli.client import ChorusClient

    hyperparameters = {
        "num_virtual_tokens": virtual_tokens,
        "n_epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "seed": seed,
    }
    gate = {"metric": gate_metric, "min_gain": min_gain, "confidence": confidence, "top_k": top_k}
    options = {"init": init, "init_text": init_text, "reparametrization": reparametrization}
    body = {
        "task": task,
        "template": template,
        "verbalizer": _parse_verbalizer(verbalizer),
        "hyperparameters": _given(hyperparameters) or None,
        "method": _method(method, _given(options) | _parse_options(method_option or [])),
        "sweep": parse_sweep(sweep or [], keep_all=keep_all),
        "publish": {"when": publish, "alias": alias, **_given(gate)},
    }
    out = Output(as_json=as_json)
    with ChorusClient(url, key) as client:
        data = _upload_rows(client, out, file, validation, dataset)
        job = client.train(_given(body | data), idempotency_key=idempotency_key)
        _after_submit(client, job, out, watch=watch)


def jobs(
    job_id: Annotated[str | None, typer.Argument(metavar="[JOB]", help="One job; without it, the latest.")] = None,
    watch: o.Watch = False,
    cancel: Annotated[bool, typer.Option("--cancel", help="Cancel the job.")] = False,
    limit: Annotated[int, typer.Option("--limit", min=1, max=100, help="How many to list.")] = 20,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List training jobs; show, watch or cancel one."""
    from app.cli.client import ChorusClient
    from app.cli.watch import show_job, show_jobs, watch_job

    if job_id is None and (watch or cancel):
        raise CliError("say which job", Exit.USAGE, fix="chorus jobs lists them")
    out = Output(as_json=as_json)
    with ChorusClient(url, key) as client:
        if job_id is None:
            show_jobs(client.jobs(limit), out)
        elif watch:
            watch_job(client, client.job(job_id), out)
        else:
            show_job(client, client.cancel_job(job_id) if cancel else client.job(job_id), out)


def dataset_name(file: Path) -> str:
    """A data set's name from a file's: lower case, the characters that names may have."""
    name = re.sub(r"[^a-z0-9._-]+", "-", file.stem.lower()).strip("-._")
    return name[:63] or "rows"


def _after_submit(client: Any, job: dict[str, Any], out: Output, *, watch: bool) -> None:
    from app.cli.watch import watch_job

    if watch:
        watch_job(client, job, out)
    elif out.as_json:
        out.data(job)
    else:
        out.say(f"Job {job['id']} is {job['status']}.")
        out.note(f"Watch it: chorus jobs {job['id']} --watch")


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _method(kind: str | None, options: dict[str, Any]) -> dict[str, Any] | None:
    return {"type": kind or "prompt_tuning", **options} if kind or options else None


def _parse_options(given: list[str]) -> dict[str, Any]:
    """`num_ranks=4` is a number, `source=["a@1"]` a list, `encoder=lstm` a text."""
    found: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise CliError(f"--method-option takes KEY=VALUE, not {text!r}", Exit.USAGE)
        try:
            found[name.strip()] = json.loads(value)
        except ValueError:
            found[name.strip()] = value
    return found


def _parse_verbalizer(text: str | None) -> dict[str, Any] | str | None:
    if text is None or text == "search":
        return text
    try:
        found = json.loads(text)
    except ValueError as error:
        raise CliError(f"--verbalizer is not JSON: {error}", Exit.USAGE) from None
    if not isinstance(found, dict):
        raise CliError("--verbalizer is an object: label to list of words", Exit.USAGE)
    return found


def _upload_rows(
    client: ChorusClient, out: Output, file: Path, validation: Path | None, dataset: str | None
) -> dict[str, Any]:
    """The parts of a request that name what was uploaded."""
    name = dataset or dataset_name(file)
    out.note(_describe_upload(file, client.upload(name, file)))
    if validation is None:
        return {"training_data": {"dataset": name}}
    checked = dataset_name(validation)
    if dataset or checked == name:  # under one name the second upload would replace the first
        checked = f"{name[:52]}-validation"
    out.note(_describe_upload(validation, client.upload(checked, validation)))
    return {"training_data": {"dataset": name}, "validation_data": {"dataset": checked}}


def _describe_upload(file: Path, found: dict[str, Any]) -> str:
    rows = found.get("rows")
    return f"Uploaded {file.name}" + (f": {rows} rows" if rows is not None else "")
