"""The registry in memory, for tests of those who use the store. It passes the same contract tests as Redis.

Not for production: it forgets everything with its process.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Sequence

from prompt_store import memory_aliases
from prompt_store.errors import AliasNotFound, Conflict, Fenced, StoreBehind, TaskNotFound, VersionNotFound
from prompt_store.event_log import EventKind, EventLog
from prompt_store.metadata import (
    AliasEntry,
    Change,
    Content,
    Delta,
    Draft,
    Dump,
    Restoration,
    TaskEntry,
    Tombstone,
    follows,
    member_keys,
    public_aliases,
)
from prompt_store.models import Alias, AliasTarget, Evaluation, Event, Task, TaskSpec, Version, VersionState


class MemoryMetadata:
    """Implements `Metadata`. Thread-safe."""

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.RLock())
        self._epoch = 0
        self._log = EventLog()
        self._entries: dict[str, TaskEntry] = {}
        self._numbers: dict[str, int] = {}
        self._versions: dict[tuple[str, int], Version] = {}
        self._aliases: dict[str, tuple[AliasEntry, ...]] = {}
        self._publications: dict[str, tuple[str, int]] = {}
        self._fences: dict[str, int] = {}
        self._tombstones: dict[str, Tombstone] = {}

    def close(self) -> None:
        """Nothing to close."""

    # writes

    def put_task(self, name: str, spec: TaskSpec, *, new_task_id: str, at: float, floor: int) -> Change:
        with self._changed:
            self._check_floor(floor)
            entry = self._entries.get(name)
            if entry is None:
                self._epoch += 1
                entry = self._create_task(name, spec, new_task_id, at)
            elif entry.task.spec != spec:
                if entry.task.spec.labels != spec.labels and self._numbers.get(name, 0) > entry.base:
                    raise Conflict(f"the labels of task {name} may not change while it has versions", param="labels")
                self._epoch += 1
                task = entry.task.model_copy(update={"spec": spec, "updated_at": at})
                entry = self._entries[name] = entry.model_copy(update={"task": task})
                self._emit("task", task, at)
            task_id = entry.task.id
            return Change(epoch=self._epoch, task_id=task_id, entry=entry, created=task_id == new_task_id)

    def _create_task(self, name: str, spec: TaskSpec, task_id: str, at: float) -> TaskEntry:
        task = Task(name=name, id=task_id, spec=spec, created_at=at, updated_at=at)
        entry = self._entries[name] = TaskEntry(task=task, base=self._numbers.get(name, 0))
        self._emit("task", task, at)
        return entry

    def delete_task(self, name: str, *, at: float, floor: int) -> Change:
        with self._changed:
            self._check_floor(floor)
            entry = self._entry(name)
            self._epoch += 1
            tombstone = self._bury(entry)
            self._emit("task_deleted", entry.task, at)
            return Change(epoch=self._epoch, task_id=entry.task.id, tombstone=tombstone)

    def _bury(self, entry: TaskEntry) -> Tombstone:
        task = entry.task
        last = self._numbers.get(task.name, 0)
        numbers = range(entry.base + 1, last + 1)
        gone = [version for number in numbers if (version := self._versions.pop((task.id, number), None))]
        self._aliases.pop(task.id, None)
        del self._entries[task.name]
        publications = {version.publication: version.number for version in gone}
        tombstone = Tombstone(name=task.name, task_id=task.id, last=last, publications=publications)
        self._tombstones[task.id] = tombstone
        return tombstone

    def publish(self, draft: Draft, *, at: float, floor: int) -> Change:
        with self._changed:
            self._check_floor(floor)
            self._check_fence(draft)
            entry = self._entries.get(draft.task)
            known = self._publications.get(draft.publication)
            if known is not None:
                return self._published(draft, entry, known)
            if entry is None and draft.spec is None:
                raise TaskNotFound(f"no task {draft.task}", param="task")
            if draft.alias is not None:
                memory_aliases.check_revision(self._aliases_of(entry), draft.alias, draft.expected)
            self._epoch += 1
            if entry is None:
                assert draft.spec is not None
                entry = self._create_task(draft.task, draft.spec, draft.new_task_id, at)
            versions = [self._add_version(draft, content, entry, at) for content in draft.contents]
            target = draft.target([version.number for version in versions])
            for alias in memory_aliases.names_to_move(draft.alias, first=versions[0].number == entry.base + 1):
                self._point(entry.task, alias, target, at)
            return self._version_change(entry, versions, created=True)

    def _check_fence(self, draft: Draft) -> None:
        if draft.fence is None:
            return
        seen = self._fences.get(draft.publication, 0)
        if draft.fence < seen:
            raise Fenced(
                f"publication {draft.publication} belongs to token {seen} by now, not {draft.fence}", param="fence"
            )
        self._fences[draft.publication] = draft.fence

    def _published(self, draft: Draft, entry: TaskEntry | None, known: tuple[str, int]) -> Change:
        if entry is None or entry.task.id != known[0]:
            raise Conflict(
                f"publication {draft.publication} was made already, for another or a deleted task", param="publication"
            )
        return self._version_change(entry, self.find_publication(draft.publication), created=False)

    def _add_version(self, draft: Draft, content: Content, entry: TaskEntry, at: float) -> Version:
        number = self._numbers.get(draft.task, 0) + 1
        version = Version(
            task=draft.task,
            task_id=entry.task.id,
            number=number,
            digest=content.digest,
            size_bytes=content.size_bytes,
            state=draft.state,
            meta=content.meta,
            card=content.card,
            publication=content.publication,
            created_at=at,
        )
        self._numbers[draft.task] = number
        self._versions[entry.task.id, number] = version
        self._publications[content.publication] = (entry.task.id, number)
        self._emit("version", entry.task, at, version=number)
        return version

    def _version_change(self, entry: TaskEntry, versions: Sequence[Version], *, created: bool) -> Change:
        aliases = self._aliases_of(entry)
        return Change(self._epoch, entry.task.id, entry, tuple(versions), aliases, created=created)

    def raise_fence(self, publication: str, fence: int) -> int:
        with self._changed:
            seen = self._fences[publication] = max(fence, self._fences.get(publication, 0))
            return seen

    def set_state(self, task: str, number: int, state: VersionState, *, at: float, floor: int) -> Change:
        with self._changed:
            self._check_floor(floor)
            entry, version = self._entry(task), self.get_version(task, number)
            if version.state != state:
                if state == "retired":
                    memory_aliases.check_unused(self._aliases_of(entry), task, number)
                version = self._replace(entry, version.model_copy(update={"state": state}), at)
            return Change(self._epoch, entry.task.id, entry=entry, versions=(version,))

    def append_evaluation(self, task: str, number: int, evaluation: Evaluation, *, at: float, floor: int) -> Change:
        with self._changed:
            self._check_floor(floor)
            entry, version = self._entry(task), self.get_version(task, number)
            if evaluation not in version.card:
                version = self._replace(entry, version.model_copy(update={"card": (*version.card, evaluation)}), at)
            return Change(self._epoch, entry.task.id, entry=entry, versions=(version,))

    def _replace(self, entry: TaskEntry, version: Version, at: float) -> Version:
        self._epoch += 1
        self._versions[entry.task.id, version.number] = version
        self._emit("version_state", entry.task, at, version=version.number)
        return version

    def move_alias(
        self, task: str, name: str, target: AliasTarget, *, expected: int | None, at: float, floor: int
    ) -> Change:
        with self._changed:
            self._check_floor(floor)
            entry = self._entry(task)
            memory_aliases.check_revision(self._aliases_of(entry), name, expected)
            self._check_fit(entry, target)
            self._epoch += 1
            self._point(entry.task, name, target, at)
            return Change(self._epoch, entry.task.id, aliases=self._aliases[entry.task.id])

    def _check_fit(self, entry: TaskEntry, target: AliasTarget) -> None:
        task = entry.task
        for place, number in target.places:
            version = self._versions.get((task.id, number))
            if version is None:
                raise VersionNotFound(f"task {task.name} has no version {number}", param=place)
            if version.state in ("retired", "quarantined"):
                raise Conflict(f"{task.name}@{number} is {version.state}: no alias may point to it", param=place)

    def _aliases_of(self, entry: TaskEntry | None) -> tuple[AliasEntry, ...]:
        return () if entry is None else self._aliases.get(entry.task.id, ())

    def _point(self, task: Task, name: str, target: AliasTarget, at: float) -> None:
        self._aliases[task.id] = memory_aliases.pointed(self._aliases.get(task.id, ()), name, target, at)
        self._emit("alias", task, at, version=target.version, alias=name)

    def delete_alias(self, task: str, name: str, *, expected: int | None, at: float, floor: int) -> Change:
        with self._changed:
            self._check_floor(floor)
            entry = self._entry(task)
            aliases = self._aliases_of(entry)
            alias = memory_aliases.find(aliases, name)
            if alias is None or alias.deleted:
                raise AliasNotFound(f"task {task} has no alias {name}", param="alias")
            memory_aliases.check_revision(aliases, name, expected)
            self._epoch += 1
            self._aliases[entry.task.id] = memory_aliases.without(aliases, name, at)
            self._emit("alias_deleted", entry.task, at, alias=name)
            return Change(self._epoch, entry.task.id, aliases=self._aliases[entry.task.id])

    def restore(self, restoration: Restoration, *, expected_epoch: int) -> int:
        with self._changed:
            if self._epoch != expected_epoch:
                raise Conflict("the registry changed while it was being rebuilt")
            self._epoch = max(expected_epoch, restoration.epoch) + 2
            for name in restoration.vacated:
                self._bury(self._entries[name])
            for tombstone in restoration.tombstones:
                self._tombstones[tombstone.task_id] = tombstone
                for publication, number in tombstone.publications.items():
                    self._publications[publication] = (tombstone.task_id, number)
                self._log.add(self._epoch, "task_deleted", tombstone.name, tombstone.task_id, restoration.at)
            self._numbers.update(restoration.numbers)
            self._aliases.update(restoration.aliases)
            for version in restoration.versions:
                self._versions[version.task_id, version.number] = version
                self._publications[version.publication] = (version.task_id, version.number)
            for entry in restoration.entries:
                self._entries[entry.task.name] = entry
                self._emit("task", entry.task, restoration.at)
            return self._epoch

    def _check_floor(self, floor: int) -> None:
        if self._epoch < floor:
            raise StoreBehind(
                f"the metadata server is at epoch {self._epoch}, but the record files know of {floor}: rebuild it first"
            )

    def _emit(
        self, kind: EventKind, task: Task, at: float, *, version: int | None = None, alias: str | None = None
    ) -> None:
        self._log.add(self._epoch, kind, task.name, task.id, at, version=version, alias=alias)
        self._changed.notify_all()

    # reads

    def epoch(self) -> int:
        with self._changed:
            return self._epoch

    def _entry(self, name: str) -> TaskEntry:
        try:
            return self._entries[name]
        except KeyError:
            raise TaskNotFound(f"no task {name}", param="task") from None

    def get_task(self, name: str) -> Task:
        with self._changed:
            return self._entry(name).task

    def list_tasks(self, *, after: str | None, limit: int) -> tuple[list[Task], bool]:
        with self._changed:
            names = sorted(self._entries)
            start = 0 if after is None else bisect_right(names, after)
            page = names[start : start + limit]
            return [self._entries[name].task for name in page], len(names) > start + limit

    def get_version(self, task: str, number: int) -> Version:
        with self._changed:
            try:
                return self._versions[self._entry(task).task.id, number]
            except KeyError:
                raise VersionNotFound(f"task {task} has no version {number}", param="version") from None

    def list_versions(self, task: str, *, after: int, limit: int) -> tuple[list[Version], bool]:
        with self._changed:
            entry = self._entry(task)
            numbers = range(max(after, entry.base) + 1, self._numbers.get(task, 0) + 1)
            found = (self._versions.get((entry.task.id, number)) for number in numbers[:limit])
            return [version for version in found if version], len(numbers) > limit

    def list_aliases(self, task: str) -> list[Alias]:
        with self._changed:
            return public_aliases(task, self._aliases.get(self._entry(task).task.id, ()))

    def find_publication(self, publication: str) -> list[Version]:
        with self._changed:
            known = (self._publications.get(name) for name in member_keys(publication))
            return [self._versions[key] for key in known if key in self._versions]

    def events(self, after: str, *, limit: int, block_ms: int | None) -> list[Event]:
        with self._changed:
            self._changed.wait_for(lambda: self._log.has_news(after), timeout=(block_ms or 0) / 1000)
            return self._log.behind(after)[:limit]

    def delta(self, after: str, *, epoch: int) -> Delta | None:
        with self._changed:
            events = self._log.behind(after) if self._log.holds(after) else []
            if not follows([event.epoch for event in events], epoch, self._epoch):
                return None
            entries = {event.task: self._entries.get(event.task) for event in events}
            named = {(event.task_id, event.version): None for event in events if event.version is not None}
            found = (self._versions.get(key) for key in named)
            live = [entry.task.id for entry in entries.values() if entry is not None]
            return Delta(
                epoch=self._epoch,
                last_event_id=self._log.last_id(),
                entries=entries,
                versions=tuple(version for version in found if version is not None),
                aliases={task_id: self._aliases.get(task_id, ()) for task_id in live},
            )

    def dump(self) -> Dump:
        with self._changed:
            return Dump(
                epoch=self._epoch,
                last_event_id=self._log.last_id(),
                entries=tuple(self._entries[name] for name in sorted(self._entries)),
                versions=tuple(sorted(self._versions.values(), key=lambda version: (version.task, version.number))),
                aliases=dict(self._aliases),
                numbers=dict(self._numbers),
                tombstones=tuple(self._tombstones.values()),
            )
