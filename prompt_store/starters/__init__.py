"""Prompts that ship with the package: for each starter task a blob and, beside it, its task and card.

    <task>.safetensors    the blob, as the store keeps it
    <task>.json           {"sha256", "spec": TaskSpec, "card": [Evaluation, …]}

They belong to the bundled backbone and are installed once. A task that a user made under the same name, or a starter
that a user deleted, is left alone. Where `prod` is the starter of another backbone, which cannot answer on this one,
this backbone's takes its place: the package was updated, and brings another model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prompt_store.blob_format import decode_blob
from prompt_store.errors import AliasNotFound, Conflict, CorruptBlob, CorruptRecord, TaskNotFound
from prompt_store.models import PROD, Evaluation, PromptMeta, TaskSpec, Version
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
        return f"{_publication_prefix(self.task)}{hashlib.sha256(self.data).hexdigest()[:16]}"


def read_starters(folder: Path = FOLDER) -> list[Starter]:
    """All starters of a folder, by task name. Raises CorruptBlob where a blob is not the one its record names, and
    CorruptRecord where one of a starter's files is missing or cannot be read."""
    return [_read(path) for path in sorted(folder.glob("*.json"))]


def install_starters(store: PromptStore, fingerprint: str, folder: Path = FOLDER) -> list[str]:
    """Publish the starters of the backbone with this fingerprint that the store has never had, and point `prod` to them
    where it is a starter of another backbone; returns the tasks that changed.

    Raises StoreUnavailable, and as `read_starters` does.
    """
    return [
        starter.task
        for starter in read_starters(folder)
        if starter.meta.backbone.fingerprint == fingerprint and _install(store, starter)
    ]


def write_starter(version: Version, spec: TaskSpec, data: bytes, *, card: Sequence[Evaluation], folder: Path) -> None:
    """Write a published version as a starter."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{version.task}.safetensors").write_bytes(data)
    _write_record(folder, version.task, version.digest, spec, card)


def write_card(starter: Starter, card: Sequence[Evaluation], folder: Path) -> None:
    """Give a starter of this folder another card; its blob stays."""
    _write_record(folder, starter.task, hashlib.sha256(starter.data).hexdigest(), starter.spec, card)


def _write_record(folder: Path, task: str, digest: str, spec: TaskSpec, card: Sequence[Evaluation]) -> None:
    record = {
        "sha256": digest,
        "spec": spec.model_dump(mode="json"),
        "card": [evaluation.model_dump(mode="json") for evaluation in card],
    }
    (folder / f"{task}.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _install(store: PromptStore, starter: Starter) -> bool:
    """Whether anything was changed."""
    try:
        spec = store.get_task(starter.task).spec
    except TaskNotFound:
        return _publish(store, starter, None)
    if (spec.fields, spec.labels) != (starter.spec.fields, starter.spec.labels):
        return False
    revision = _revision_to_replace(store, starter)
    return revision is not None and _publish(store, starter, revision)


def _publish(store: PromptStore, starter: Starter, revision: int | None) -> bool:
    """Whether anything was changed. `revision`: what `prod` must still be at, None where there was no task."""
    _, tensors = decode_blob(starter.data)
    try:
        made = store.publish(
            task=starter.task,
            meta=starter.meta,
            tensors=tensors,
            publication=starter.publication,
            alias_revision=revision,
            card=starter.card,
            spec=starter.spec,
        )
        if made.created or revision is None:  # None, and not made here: another replica was first
            return made.created
        store.move_alias(starter.task, PROD, made.version.number, expected=revision)  # the package went back
    except Conflict:  # somebody deleted or retired it once, or has just moved the alias
        return False
    return True


def _revision_to_replace(store: PromptStore, starter: Starter) -> int | None:
    """The revision of `prod` if that is a starter of another backbone, else None."""
    try:
        prod = store.get_alias(starter.task, PROD)
    except AliasNotFound:
        return None
    if prod.version is None:
        return None
    version = store.get_version(starter.task, prod.version)
    ours = version.publication.startswith(_publication_prefix(starter.task))
    return prod.revision if ours and version.meta.backbone.fingerprint != starter.meta.backbone.fingerprint else None


def _publication_prefix(task: str) -> str:
    return f"starter-{task}-"


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
