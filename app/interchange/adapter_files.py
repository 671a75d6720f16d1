"""An adapter's files: in memory, in a folder as PEFT lays it out, and in the JSON of the HTTP API.

    adapter_config.json          PEFT's description
    adapter_model.safetensors    its tensors
    chorus.json                  template and label words, where there are any; PEFT passes it over

Only these three are read. `adapter_model.bin` is a pickle, which could run anything: it is refused, with the way out.
Needs no torch, so that the command line stays quick.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.errors import InvalidPrompt, TooLarge
from prompt_store.blob_format import MAX_BLOB_BYTES

CONFIG, MODEL, PICKLED, WORDING = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin", "chorus.json"
MAX_CONFIG_BYTES = 1 << 20


@dataclass(frozen=True)
class AdapterFiles:
    """`config` is `adapter_config.json`, `model` the bytes of the tensors' file; `template` and `verbalizer` are what
    PEFT does not know of a prompt."""

    config: Mapping[str, Any]
    model: bytes
    template: str | None = None
    verbalizer: Mapping[str, list[str]] | None = None


def read_folder(folder: Path) -> AdapterFiles:
    """The files of a folder that PEFT or `write_folder` has written.

    Raises InvalidPrompt where a file is missing, no JSON, or a pickle; TooLarge where one is beyond its limit.
    """
    if not folder.is_dir():
        raise InvalidPrompt(f"{folder} is not a folder; PEFT saves an adapter as one, with {CONFIG} in it")
    if not (folder / CONFIG).is_file():
        raise InvalidPrompt(f"{folder} has no {CONFIG}: it is not a folder that PEFT has saved")
    if not (folder / MODEL).is_file():
        raise InvalidPrompt(_no_model(folder))
    wording = read_json(folder / WORDING) if (folder / WORDING).is_file() else {}
    template, words = wording.get("template"), wording.get("verbalizer")
    if not isinstance(template, str | None) or not isinstance(words, dict | None):
        raise InvalidPrompt(f"{folder / WORDING}: `template` is a text and `verbalizer` an object")
    return AdapterFiles(read_json(folder / CONFIG), _read(folder / MODEL, MAX_BLOB_BYTES), template, words)


def write_folder(files: AdapterFiles, folder: Path) -> None:
    """Write the files; a folder that is missing is made, its adapter is replaced. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / CONFIG, (json.dumps(dict(files.config), indent=2, sort_keys=True) + "\n").encode())
    _write(folder / MODEL, files.model)
    wording = {"template": files.template, "verbalizer": files.verbalizer}
    given = {name: value for name, value in wording.items() if value is not None}
    if given:
        _write(folder / WORDING, (json.dumps(given, indent=2, ensure_ascii=False) + "\n").encode())
    else:
        (folder / WORDING).unlink(missing_ok=True)


def _no_model(folder: Path) -> str:
    if (folder / PICKLED).exists():
        return (
            f"{folder / PICKLED} is a pickle, which could run anything when opened: "
            f"`chorus convert {folder} NEW_FOLDER` reads its tensors alone and writes safetensors"
        )
    return f"{folder} has no {MODEL}"


def read_json(file: Path) -> dict[str, Any]:
    """Raises InvalidPrompt for what is no JSON object, TooLarge."""
    try:
        found = json.loads(_read(file, MAX_CONFIG_BYTES))
    except (ValueError, RecursionError):
        raise InvalidPrompt(f"{file} is not JSON") from None
    if not isinstance(found, dict):
        raise InvalidPrompt(f"{file} is not a JSON object")
    return found


def _read(file: Path, limit: int) -> bytes:
    """All of a file, never more than `limit` bytes of it in memory."""
    try:
        with file.open("rb") as opened:
            data = opened.read(limit + 1)
    except OSError as error:
        raise InvalidPrompt(f"cannot read {file}: {error.strerror}") from None
    if len(data) > limit:
        raise TooLarge(f"{file} is larger than {limit} bytes")
    return data


def _write(file: Path, data: bytes) -> None:
    """In one step: a reader finds the old file or the new one."""
    fresh = file.with_name(f".{file.name}.{os.getpid()}")
    fresh.write_bytes(data)
    fresh.replace(file)
