"""Prompts that ship with the package: for each starter task a blob and, beside it, its task and card.

    <task>.safetensors    the blob, as the store keeps it
    <task>.json           {"sha256", "spec": TaskSpec, "card": [Evaluation, …]}

They belong to the bundled backbone and are installed once. A task that a user made under the same name, or a starter
that a user deleted, is left alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prompt_store.blob_format import decode_blob
from prompt_store.errors import Conflict, CorruptBlob, CorruptRecord, TaskNotFound
from prompt_store.models import Evaluation, PromptMeta, TaskSpec, Version
from prompt_store.store import PromptStore

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Starter:
    """One shipped prompt. `data` is the blob, verified against the digest written beside it."""

    task: str
    spec: TaskSpec
    card: tuple[Evaluation, ...]
    data: bytes
    meta: PromptMeta

    @property
    def publication(self) -> str:
        return f"starter-{self.task}-{hashlib.sha256(self.data).hexdigest()[:16]}"


def read_starters(folder: Path = FOLDER) -> list[Starter]:
    """All starters of a folder, by task name. Raises CorruptBlob where a blob is not the one its record names, and
    CorruptRecord where one of a starter's files is missing or cannot be read."""
    return [_read(path) for path in sorted(folder.glob("*.json"))]


def install_starters(store: PromptStore, fingerprint: str, folder: Path = FOLDER) -> list[str]:
    """Publish the starters of the backbone with this fingerprint that the store has never had; returns their tasks.

    Raises StoreUnavailable, and as `read_starters` does.
    """
    installed = []
    for starter in read_starters(folder):
        if starter.meta.backbone.fingerprint == fingerprint and not _has_task(store, starter.task):
            _, tensors = decode_blob(starter.data)
            try:
                store.publish(
                    task=starter.task,
                    meta=starter.meta,
                    tensors=tensors,
                    publication=starter.publication,
                    card=starter.card,
                    spec=starter.spec,
                )
            except Conflict:  # it was here once, and somebody deleted it
                continue
            installed.append(starter.task)
    return installed


def write_starter(version: Version, spec: TaskSpec, data: bytes, *, card: Sequence[Evaluation], folder: Path) -> None:
    """Write a published version as a starter."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{version.task}.safetensors").write_bytes(data)
    record = {
        "sha256": version.digest,
        "spec": spec.model_dump(mode="json"),
        "card": [evaluation.model_dump(mode="json") for evaluation in card],
    }
    (folder / f"{version.task}.json").write_text(
        json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def _has_task(store: PromptStore, name: str) -> bool:
    try:
        store.get_task(name)
    except TaskNotFound:
        return False
    return True


def _read(path: Path) -> Starter:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        spec = TaskSpec.model_validate(record["spec"])
        card = tuple(Evaluation.model_validate(entry) for entry in record["card"])
        digest, data = record["sha256"], path.with_suffix(".safetensors").read_bytes()
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise CorruptRecord(f"the starter {path.stem} is damaged: a file of it cannot be read") from error
    if hashlib.sha256(data).hexdigest() != digest:
        raise CorruptBlob(f"the starter {path.stem} is damaged: its blob is not the one its record names")
    meta, _ = decode_blob(data)
    return Starter(task=meta.task, spec=spec, card=card, data=data, meta=meta)
