"""The last known good registry: everything a reader needs, as one immutable value that fits in a file.

A replica answers from its snapshot alone; with the file, the manifest, it starts cold while the metadata server is
down. It holds no tensors: those come, verified, from the blobs. What changes makes a new snapshot that shares all the
tasks that did not change with the old one, so that following a registry costs what happens in it, not what it holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from prompt_store.durable import NotRegular, TooLong, make_folder, read_file, storage_errors, write_file
from prompt_store.errors import AliasNotFound, CorruptRecord, InvalidManifest, NotFound, TaskNotFound, VersionNotFound
from prompt_store.journal import sealed, unsealed
from prompt_store.metadata import AliasEntry, Delta, Dump, TaskEntry, public_aliases
from prompt_store.models import PROD, Alias, AliasTarget, Record, Task, Version
from prompt_store.refs import PromptRef, only_version

_MAX_MANIFEST_BYTES = 1 << 30


@dataclass(frozen=True)
class TaskState:
    """One task with its versions, by ascending number, and its aliases, by name. Nobody changes the mappings."""

    task: Task
    versions: Mapping[int, Version] = field(default_factory=dict)
    aliases: Mapping[str, Alias] = field(default_factory=dict)


@dataclass(frozen=True)
class Snapshot:
    """The registry at one `epoch`; `last_event_id` is where following the event stream goes on. `states` is by task
    name, in no order, and nobody changes it."""

    epoch: int = 0
    last_event_id: str = "0"
    states: Mapping[str, TaskState] = field(default_factory=dict)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Task names in order."""
        return tuple(sorted(self.states))

    @cached_property
    def tasks(self) -> tuple[Task, ...]:
        """All tasks by name. This and the next two walk through everything: they are for lists, not for requests."""
        return tuple(self.states[name].task for name in self.names)

    @cached_property
    def versions(self) -> tuple[Version, ...]:
        return tuple(chain.from_iterable(self.states[name].versions.values() for name in self.names))

    @cached_property
    def aliases(self) -> tuple[Alias, ...]:
        return tuple(chain.from_iterable(self.states[name].aliases.values() for name in self.names))

    def state(self, task: str) -> TaskState:
        """A task with all that belongs to it. Raises TaskNotFound."""
        try:
            return self.states[task]
        except KeyError:
            raise TaskNotFound(f"no task {task}", param="task") from None

    def task(self, name: str) -> Task:
        """Raises TaskNotFound."""
        return self.state(name).task

    def version(self, task: str, number: int) -> Version:
        """Raises TaskNotFound, VersionNotFound."""
        try:
            return self.state(task).versions[number]
        except KeyError:
            raise VersionNotFound(f"task {task} has no version {number}", param="version") from None

    def alias(self, task: str, name: str) -> Alias:
        """Raises TaskNotFound, AliasNotFound."""
        try:
            return self.state(task).aliases[name]
        except KeyError:
            raise AliasNotFound(f"task {task} has no alias {name}", param="alias") from None

    def resolve(self, ref: PromptRef) -> Version:
        """The one version that `ref` means here.

        Raises TaskNotFound, VersionNotFound, AliasNotFound, and InvalidReference for an alias that points to several.
        """
        return self.version(ref.task, only_version(ref, self.target(ref)))

    def target(self, ref: PromptRef) -> AliasTarget:
        """Where `ref` points here: to a version, a split or an ensemble. Raises TaskNotFound, AliasNotFound."""
        if ref.version is not None:
            return AliasTarget(version=ref.version)
        return self.alias(ref.task, ref.alias or PROD)

    def after(self, delta: Delta) -> Snapshot:
        """This registry with `delta` applied: the same as reading everything at the delta's epoch."""
        if not delta.entries and delta.epoch == self.epoch:
            return self
        states = dict(self.states)
        fresh = _by_task(delta.versions)
        for name, entry in delta.entries.items():
            if entry is None:
                states.pop(name, None)
            else:
                known = states.get(name)
                aliases = delta.aliases.get(entry.task.id, ())
                states[name] = _renewed(known, entry, fresh.get(entry.task.id, {}), aliases)
        return Snapshot(delta.epoch, delta.last_event_id, states)

    def save(self, path: Path) -> None:
        """Write to `path` atomically and durably. Raises StoreUnavailable."""
        with storage_errors("manifest"):
            make_folder(path.parent)
            write_file(path, sealed(b"".join(self._json())))

    def _json(self) -> Iterator[bytes]:
        """The JSON of a `_Manifest`, record by record: one call for ten thousand of them would stop all threads."""
        empty = _Manifest(epoch=self.epoch, last_event_id=self.last_event_id)
        yield empty.model_dump_json(include={"format", "epoch", "last_event_id"}).encode()[:-1]
        for name, records in (("tasks", self.tasks), ("versions", self.versions), ("aliases", self.aliases)):
            yield f',"{name}":['.encode()
            for place, record in enumerate(records):
                yield (b"," if place else b"") + record.model_dump_json().encode()
            yield b"]"
        yield b"}"

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
            manifest = _Manifest.model_validate_json(unsealed(data))
        except (CorruptRecord, ValidationError) as error:
            raise InvalidManifest("the manifest is damaged or of another format") from error
        states = {task.name: TaskState(task) for task in manifest.tasks}
        for task_id, versions in _by_task(manifest.versions).items():
            name = next(iter(versions.values())).task
            if name in states and states[name].task.id == task_id:
                states[name] = replace(states[name], versions=versions)
        for alias in manifest.aliases:
            if alias.task in states:
                known = states[alias.task]
                states[alias.task] = replace(known, aliases={**known.aliases, alias.name: alias})
        return cls(manifest.epoch, manifest.last_event_id, states)


class _Manifest(Record):
    """The file's form."""

    format: Literal[1] = 1
    epoch: int
    last_event_id: str
    tasks: tuple[Task, ...] = ()
    versions: tuple[Version, ...] = ()
    aliases: tuple[Alias, ...] = ()


def snapshot_of(dump: Dump) -> Snapshot:
    """What readers may know of `dump`."""
    versions = _by_task(dump.versions)
    states = {}
    for entry in dump.entries:
        task = entry.task
        aliases = _public(task.name, dump.aliases.get(task.id, ()))
        states[task.name] = TaskState(task, versions.get(task.id, {}), aliases)
    return Snapshot(dump.epoch, dump.last_event_id, states)


def _renewed(
    known: TaskState | None, entry: TaskEntry, fresh: Mapping[int, Version], aliases: tuple[AliasEntry, ...]
) -> TaskState:
    """A task as it is now. Versions of an earlier task of the same name are not its own."""
    kept = known.versions if known is not None and known.task.id == entry.task.id else {}
    return TaskState(entry.task, {**kept, **fresh} if fresh else kept, _public(entry.task.name, aliases))


def _public(task: str, entries: tuple[AliasEntry, ...]) -> dict[str, Alias]:
    return {alias.name: alias for alias in public_aliases(task, entries)}


def _by_task(versions: Iterable[Version]) -> dict[str, dict[int, Version]]:
    """task id -> number -> version; numbers keep the order they come in, which is ascending."""
    found: dict[str, dict[int, Version]] = {}
    for version in versions:
        found.setdefault(version.task_id, {})[version.number] = version
    return found
