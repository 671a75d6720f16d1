"""The last known good manifest: everything a reader needs, as one immutable value that fits in a file.

A replica answers from its snapshot alone; with the file it starts cold while the metadata server is down. It holds no
tensors: those come, verified, from the blobs.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from prompt_store.durable import NotRegular, TooLong, make_folder, read_file, storage_errors, write_file
from prompt_store.errors import AliasNotFound, CorruptRecord, InvalidManifest, NotFound, TaskNotFound, VersionNotFound
from prompt_store.journal import seal, unsealed
from prompt_store.metadata import Dump, public_aliases
from prompt_store.models import PROD, Alias, Record, Task, Version
from prompt_store.refs import PromptRef

_MAX_MANIFEST_BYTES = 1 << 30


class Snapshot(Record):
    """Tasks, versions and aliases at one `epoch`; `last_event_id` is where following the event stream goes on."""

    format: Literal[1] = 1
    epoch: int
    last_event_id: str
    tasks: tuple[Task, ...]
    versions: tuple[Version, ...]
    aliases: tuple[Alias, ...]

    @cached_property
    def _tasks(self) -> dict[str, Task]:
        return {task.name: task for task in self.tasks}

    @cached_property
    def _versions(self) -> dict[tuple[str, int], Version]:
        return {(version.task, version.number): version for version in self.versions}

    @cached_property
    def _aliases(self) -> dict[tuple[str, str], Alias]:
        return {(alias.task, alias.name): alias for alias in self.aliases}

    def task(self, name: str) -> Task:
        """Raises TaskNotFound."""
        try:
            return self._tasks[name]
        except KeyError:
            raise TaskNotFound(f"no task {name}", param="task") from None

    def version(self, task: str, number: int) -> Version:
        """Raises TaskNotFound, VersionNotFound."""
        self.task(task)
        try:
            return self._versions[task, number]
        except KeyError:
            raise VersionNotFound(f"task {task} has no version {number}", param="version") from None

    def alias(self, task: str, name: str) -> Alias:
        """Raises TaskNotFound, AliasNotFound."""
        self.task(task)
        try:
            return self._aliases[task, name]
        except KeyError:
            raise AliasNotFound(f"task {task} has no alias {name}", param="alias") from None

    def resolve(self, ref: PromptRef) -> Version:
        """The version that `ref` means here. Raises TaskNotFound, VersionNotFound, AliasNotFound."""
        if ref.version is not None:
            return self.version(ref.task, ref.version)
        return self.version(ref.task, self.alias(ref.task, ref.alias or PROD).version)

    def save(self, path: Path) -> None:
        """Write to `path` atomically and durably. Raises StoreUnavailable."""
        with storage_errors("manifest"):
            make_folder(path.parent)
            write_file(path, seal(self))

    @classmethod
    def load(cls, path: Path) -> Snapshot:
        """Read what `save` wrote. Raises NotFound when there is none, InvalidManifest when it cannot be trusted."""
        with storage_errors("manifest"):
            try:
                data = read_file(path, limit=_MAX_MANIFEST_BYTES)
            except FileNotFoundError:
                raise NotFound("no manifest has been saved yet") from None
            except (NotRegular, TooLong) as error:
                raise InvalidManifest(f"the manifest is {error.strerror}") from None
        try:
            return cls.model_validate_json(unsealed(data))
        except (CorruptRecord, ValidationError) as error:
            raise InvalidManifest("the manifest is damaged or of another format") from error


def snapshot_of(dump: Dump) -> Snapshot:
    """What readers may know of `dump`."""
    names = {entry.task.id: entry.task.name for entry in dump.entries}
    aliases = [
        alias for task_id, name in names.items() for alias in public_aliases(name, dump.aliases.get(task_id, ()))
    ]
    return Snapshot(
        epoch=dump.epoch,
        last_event_id=dump.last_event_id,
        tasks=tuple(entry.task for entry in dump.entries),
        versions=tuple(version for version in dump.versions if version.task_id in names),
        aliases=tuple(aliases),
    )
