"""NeMo's prompt tables: `.nemo` (a tar of a configuration and a checkpoint) and the checkpoint alone (`.ckpt`).

    prompt_table.<task>.prompt_embeddings.weight    [P, H], a task each (NeMo 1.0 to 1.23; very old: one more prefix)
    …ptuning_adapter.inference_table                [P, H], one (1.20 to 1.23)

A table of zeros is one that was never filled: NeMo fills it at its first evaluation. `<|VIRTUAL_PROMPT_0|>` of NeMo's
template is our `<prompt:N>`; the answer's field, which ends the template, is left out.

    https://github.com/NVIDIA/NeMo/blob/v1.23.0/nemo/collections/nlp/modules/common/prompt_table.py
"""

from __future__ import annotations

import gzip
import io
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from app.backbone.template import parse_template
from app.errors import InvalidPrompt, InvalidTemplate, TooLarge
from app.interchange.adapter_files import AdapterFiles
from app.interchange.formats.vectors import vectors_adapter
from app.interchange.formats.yaml_file import read_yaml
from app.interchange.pickle_values import TensorRef
from app.interchange.torch_file import TorchFile

MAX_ARCHIVE_BYTES = 1 << 30
MAX_MEMBERS = 1000
MAX_DEPTH = 6
WEIGHTS, CONFIG = "model_weights.ckpt", "model_config.yaml"
ONLY_TASK = "taskname"
"""NeMo's own name for the task of a table that has one."""

_TABLE = re.compile(r"(?:^|\.)prompt_table\.(?P<task>(?:(?!prompt_table\.).)+)\.prompt_embeddings\.weight$")
_ADAPTER = re.compile(r"(?:^|\.)ptuning_adapter\.inference_table$")
_PLACE = re.compile(r"<\|VIRTUAL_PROMPT_(\d+)\|>")


def read_nemo(file: Path, task: str | None) -> AdapterFiles:
    """One task's prompt. `task` is needed where the file has several. Raises InvalidPrompt and TooLarge."""
    if file.suffix == ".ckpt":
        opened, config = TorchFile(file), {}
    else:
        members = _members(file)
        if WEIGHTS not in members:
            raise InvalidPrompt(f"{file} has no {WEIGHTS}")
        opened = TorchFile(io.BytesIO(members[WEIGHTS]))
        config = read_yaml(members.get(CONFIG, b""))
    tables = dict(_tables(opened.values))
    name = _choose(tables, task)
    vectors = opened.tensor(tables[name])
    if not vectors.any():
        raise InvalidPrompt(f"the table of {name!a} is all zeros: NeMo fills it at an evaluation, and had none yet")
    base = config.get("language_model_path")
    return vectors_adapter(
        vectors,
        "CAUSAL_LM",
        base_model=base if isinstance(base, str) else None,
        template=_template(config, name, vectors.shape[0] if vectors.dim() else 0),
    )


def _tables(value: Any, path: str = "", depth: int = 0) -> Iterator[tuple[str, TensorRef]]:
    """(task, table) of every prompt, by the dotted names of nested dictionaries."""
    if isinstance(value, TensorRef):
        found = _TABLE.search(path)
        if found is not None:
            yield found["task"], value
        elif _ADAPTER.search(path):
            yield ONLY_TASK, value
    elif isinstance(value, dict) and depth < MAX_DEPTH:
        for key, below in value.items():
            yield from _tables(below, f"{path}.{key}" if path else str(key), depth + 1)


def _choose(tables: dict[str, TensorRef], task: str | None) -> str:
    if not tables:
        raise InvalidPrompt("there is no prompt table in this checkpoint")
    known = ", ".join(ascii(name)[:60] for name in list(tables)[:20])
    if task is None and len(tables) > 1:
        raise InvalidPrompt(f"the table has the prompts of {known}: say which with --prompt")
    if task is not None and task not in tables:
        raise InvalidPrompt(f"there is no prompt of {task!a}; the table has {known}")
    return next(iter(tables)) if task is None else task


def _members(file: Path) -> dict[str, bytes]:
    """The two files wanted, by their last name, the first rank's where there are several. Nothing is written."""
    found: dict[str, bytes] = {}
    try:
        with file.open("rb") as raw, tarfile.open(fileobj=_bounded(raw), mode="r:") as tar:
            for count, member in enumerate(tar):
                if count >= MAX_MEMBERS:
                    raise TooLarge(f"{file} has more than {MAX_MEMBERS} members")
                name = member.name.rpartition("/")[2]
                first = not re.search(r"rank_0*[1-9]", member.name)
                if name in (WEIGHTS, CONFIG) and name not in found and member.isreg() and first:
                    opened = tar.extractfile(member)
                    assert opened is not None  # it is a file
                    found[name] = opened.read()
    except (tarfile.TarError, OSError, EOFError, ValueError, gzip.BadGzipFile):
        raise InvalidPrompt(f"{file} is not an archive of NeMo") from None
    return found


def _bounded(raw: IO[bytes]) -> IO[bytes]:
    """The tar's bytes in memory, unpacked if need be, never more than the limit of them."""
    packed = raw.read(2) == b"\x1f\x8b"
    raw.seek(0)
    with gzip.GzipFile(fileobj=raw) if packed else raw as source:
        data = source.read(MAX_ARCHIVE_BYTES + 1)
    if len(data) > MAX_ARCHIVE_BYTES:
        raise TooLarge(f"an archive of more than {MAX_ARCHIVE_BYTES} bytes")
    return io.BytesIO(data)


def _template(config: dict[str, Any], task: str, size: int) -> str | None:
    """NeMo's template in our words; None where there is none, or none that we can read."""
    templates = config.get("task_templates")
    for one in templates if isinstance(templates, list) else []:
        if isinstance(one, dict) and one.get("taskname") == task and isinstance(one.get("prompt_template"), str):
            return _translate(one, size)
    return None


def _translate(one: dict[str, Any], size: int) -> str | None:
    splits = one.get("virtual_token_splits") or [size]
    answer = one.get("answer_field")
    text = one["prompt_template"]
    if isinstance(answer, str) and text.rstrip().endswith(f"{{{answer}}}"):
        text = text.rstrip().removesuffix(f"{{{answer}}}")
    try:
        text = _PLACE.sub(lambda place: f"<prompt:{int(splits[int(place[1])])}>", text)
        return parse_template(text.strip(), num_virtual_tokens=size).source
    except (InvalidTemplate, IndexError, ValueError, TypeError, KeyError):
        return None
