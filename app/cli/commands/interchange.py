"""`chorus import-peft`, `publish-template`, `export-peft`, `convert`: prompts from elsewhere in, ours out."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from app.cli.commands.explain import Ref, one_version
from app.cli.errors import CliError, Exit
from app.cli.options import DEFAULT_URL, Debug, Json, Key, Url
from app.cli.output import Output

Template = Annotated[
    str | None,
    typer.Option(
        "--template",
        show_default=False,
        help="Text with {fields}; without a <prompt> slot the prompt comes first. Else the folder's, or {text}.",
    ),
]


Task = Annotated[str, typer.Option("--task", help="The task; one that does not exist is made.")]
Words = Annotated[
    str | None,
    typer.Option(
        "--verbalizer",
        metavar="JSON",
        show_default=False,
        help='{"label": [" word", …], …}; without it a new task answers in free text.',
    ),
]
Alias = Annotated[str, typer.Option("--alias", help="The alias that moves to the new version.")]
NoAlias = Annotated[bool, typer.Option("--no-alias", help="Move no alias.")]


def import_peft(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that PEFT has saved, with safetensors.")],
    task: Task,
    template: Template = None,
    verbalizer: Words = None,
    task_index: Annotated[
        int | None, typer.Option("--task-index", min=0, show_default=False, help="Which task of a multitask prompt.")
    ] = None,
    alias: Alias = "prod",
    no_alias: NoAlias = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Publish a PEFT adapter (prompt, P-, prefix or multitask prompt tuning) as the next version of a task."""
    from app.cli.client import ChorusClient
    from app.interchange.adapter_files import read_folder

    out = Output(as_json=as_json)
    with _said_plainly():
        files = read_folder(folder)
    body = {
        "adapter_config": dict(files.config),
        "adapter_model": base64.b64encode(files.model).decode("ascii"),
        "template": template or files.template,
        "verbalizer": files.verbalizer if verbalizer is None else _words(verbalizer),
        "task_index": task_index,
        "alias": None if no_alias else alias,
        "create_task": True,
    }
    with ChorusClient(url, key) as client:
        made = client.publish(task, body)
    if as_json:
        out.data(made)
        return
    vectors = f"{made['num_virtual_tokens']} virtual tokens, " if made["num_virtual_tokens"] else ""
    out.say(f"{task}@{made['version']} is {folder.name}: {made['method']['type']}, {vectors}{made['template']!r}")
    base = made["provenance"]["source"]["base_model"]
    if base and base != made["backbone"]["name"]:
        out.note(f"It was trained on {base}, and {made['backbone']['name']} runs here: only the shapes were compared.")
    out.note(f"Ask it: chorus generate {task}@{made['version']} TEXT")


def publish_template(
    template: Annotated[str, typer.Argument(metavar="TEMPLATE", help="Text with {fields}, without a <prompt> slot.")],
    task: Task,
    verbalizer: Words = None,
    alias: Alias = "prod",
    no_alias: NoAlias = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Publish a hand-written prompt, words alone, as the next version of a task."""
    from app.cli.client import ChorusClient

    out = Output(as_json=as_json)
    body = {
        "template": template,
        "verbalizer": None if verbalizer is None else _words(verbalizer),
        "alias": None if no_alias else alias,
        "create_task": True,
    }
    with ChorusClient(url, key) as client:
        made = client.publish(task, body)
    if as_json:
        out.data(made)
        return
    out.say(f"{task}@{made['version']} is hand-written: {made['template']!r}")
    out.note(f"Ask it: chorus generate {task}@{made['version']} TEXT")


def export_peft(
    ref: Ref,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write; an adapter in it is replaced.")],
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a version as a folder that PEFT loads, with the same logits there."""
    from app.cli.client import ChorusClient
    from app.interchange.adapter_files import AdapterFiles

    out = Output(as_json=as_json)
    with ChorusClient(url, key) as client:
        task, number = one_version(client, ref)
        found = client.adapter(task, number)
    model = base64.b64decode(found["adapter_model"])
    files = AdapterFiles(found["adapter_config"], model, found["template"], found["verbalizer"])
    _write(out, files, folder, f"{task}@{number}")
    out.note("PEFT knows no templates: what stands there around the fields is text to write yourself.")


def convert(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="A .npy, .nemo, .ckpt or .pt, or a folder of caikit or old PEFT.")
    ],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write; an adapter in it is replaced.")],
    prompt: Annotated[
        str | None, typer.Option("--prompt", show_default=False, help="Which prompt of a NeMo table that has several.")
    ] = None,
    template: Template = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Turn prompts of Lester's code, caikit, TGIS, NeMo or old PEFT into a folder for import-peft; runs no pickle."""
    from app.interchange.converting import convert as read

    out = Output(as_json=as_json)
    with _said_plainly():
        files = read(source, prompt=prompt, template=template)
    _write(out, files, folder, source.name)
    if files.template is not None:
        out.note(f"Template: {files.template!r}")
    out.note(f"Import it: chorus import-peft {folder} --task NAME")


def _write(out: Output, files: Any, folder: Path, what: str) -> None:
    from app.interchange.adapter_files import write_folder

    try:
        write_folder(files, folder)
    except OSError as error:
        raise CliError(f"cannot write {folder}: {error.strerror}", Exit.USAGE) from None
    config = files.config
    if out.as_json:
        out.data({"folder": str(folder), "adapter_config": dict(config), "template": files.template})
        return
    out.say(f"{folder} is {what}: {config['peft_type']}, {config['num_virtual_tokens']} virtual tokens")


@contextmanager
def _said_plainly() -> Iterator[None]:
    """What is wrong with a file is the caller's to mend, not the doctor's."""
    from app.errors import ChorusError

    try:
        yield
    except ChorusError as error:
        raise CliError(error.message, Exit.USAGE, detail={"code": error.code, "param": error.param}) from None


def _words(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise CliError(f"--verbalizer is not JSON: {error}", Exit.USAGE) from None
    if not isinstance(found, dict):
        raise CliError("--verbalizer is an object: label to list of words", Exit.USAGE)
    return found
