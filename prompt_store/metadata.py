"""What a metadata server must do: the protocol that Redis and the in-memory fake both keep, and the data it speaks.

Every write takes `floor`, the highest epoch known from the record files, and refuses with StoreBehind when the server
is behind it; and `at`, the time in seconds. It returns a `Change`: all that the record files must say afterwards, read
in the same atomic step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol

from pydantic import Field

from prompt_store.models import (
    MAX_MEMBERS,
    Alias,
    AliasName,
    AliasTarget,
    Ensemble,
    EnsembleMode,
    Evaluation,
    Event,
    PromptMeta,
    Record,
    Task,
    TaskName,
    TaskSpec,
    Version,
    VersionState,
)


class TaskEntry(Record):
    """A task as stored. Its versions are numbered from `base` + 1: numbers go on where an earlier task of the same
    name stopped, so that `name@number` never comes to mean something else."""

    task: Task
    base: int = Field(ge=0)


class AliasEntry(AliasTarget):
    """An alias as stored. `version` 0: deleted; the entry stays so that its revisions are not given out again."""

    name: AliasName
    version: int | None = Field(default=None, ge=0)
    revision: int = Field(ge=1)
    updated_at: float

    @property
    def deleted(self) -> bool:
        return self.version == 0


class Tombstone(Record):
    """What is left of a deleted task: its last number and the publications that must not be made again."""

    name: TaskName
    task_id: str
    last: int = Field(ge=0)
    publications: dict[str, int]


@dataclass(frozen=True)
class Content:
    """A version before it has a number. `publication` is its own key: one of `member_keys`."""

    publication: str
    digest: str
    size_bytes: int
    meta: PromptMeta
    card: tuple[Evaluation, ...]


@dataclass(frozen=True)
class Draft:
    """One publication: one version, or several that are made together or not at all and that one alias points to."""

    task: str
    publication: str
    contents: tuple[Content, ...]
    state: VersionState
    alias: str | None
    expected: int | None  # revision of the alias; 0: must not exist; None: whatever it is
    fence: int | None
    spec: TaskSpec | None  # creates the task if it does not exist
    new_task_id: str
    mode: EnsembleMode = "vote"  # how several answer together

    def target(self, numbers: Sequence[int]) -> AliasTarget:
        """Where the alias is to point, once the versions have these numbers."""
        if len(numbers) == 1:
            return AliasTarget(version=numbers[0])
        return AliasTarget(ensemble=Ensemble(members=tuple(numbers), mode=self.mode))


def member_keys(publication: str) -> list[str]:
    """The keys that a publication's versions have, by their places. No caller's own key holds a `#`."""
    return [publication, *(f"{publication}#{place}" for place in range(2, MAX_MEMBERS + 1))]


def member_place(key: str) -> int:
    """Where the version with this key stands in its publication, from 1."""
    place = key.partition("#")[2]
    return int(place) if place else 1


@dataclass(frozen=True)
class Change:
    """The outcome of one write as of `epoch`; None or empty: this part did not change and was not read."""

    epoch: int
    task_id: str
    entry: TaskEntry | None = None
    versions: tuple[Version, ...] = ()
    aliases: tuple[AliasEntry, ...] | None = None
    tombstone: Tombstone | None = None
    created: bool = False


@dataclass(frozen=True)
class Dump:
    """Everything the server holds, read at one moment."""

    epoch: int
    last_event_id: str
    entries: tuple[TaskEntry, ...] = ()
    versions: tuple[Version, ...] = ()
    aliases: dict[str, tuple[AliasEntry, ...]] = field(default_factory=dict)  # by task id
    numbers: dict[str, int] = field(default_factory=dict)  # by task name
    tombstones: tuple[Tombstone, ...] = ()


@dataclass(frozen=True)
class Delta:
    """All that events behind some place in the stream named, as it is at `epoch`, read in one step with the events:
    their tasks (None: there is no task of that name any more) with all aliases, and their versions."""

    epoch: int
    last_event_id: str
    entries: dict[str, TaskEntry | None] = field(default_factory=dict)  # by task name
    versions: tuple[Version, ...] = ()
    aliases: dict[str, tuple[AliasEntry, ...]] = field(default_factory=dict)  # by task id


@dataclass(frozen=True)
class Restoration:
    """What a rebuild puts back, all at once. `epoch` is the lowest that the server's counter may have afterwards."""

    epoch: int
    at: float
    entries: tuple[TaskEntry, ...] = ()
    versions: tuple[Version, ...] = ()
    aliases: dict[str, tuple[AliasEntry, ...]] = field(default_factory=dict)
    tombstones: tuple[Tombstone, ...] = ()
    vacated: tuple[str, ...] = ()  # names whose task on the server is one of the tombstones'
    numbers: dict[str, int] = field(default_factory=dict)


class Metadata(Protocol):
    """Atomic, linearisable records. Names and numbers are checked by the caller."""

    def close(self) -> None: ...
    def epoch(self) -> int: ...
    def put_task(self, name: str, spec: TaskSpec, *, new_task_id: str, at: float, floor: int) -> Change: ...
    def delete_task(self, name: str, *, at: float, floor: int) -> Change: ...
    def publish(self, draft: Draft, *, at: float, floor: int) -> Change: ...
    def raise_fence(self, publication: str, fence: int) -> int: ...
    def set_state(self, task: str, number: int, state: VersionState, *, at: float, floor: int) -> Change: ...
    def append_evaluation(self, task: str, number: int, evaluation: Evaluation, *, at: float, floor: int) -> Change: ...
    def move_alias(
        self, task: str, name: str, target: AliasTarget, *, expected: int | None, at: float, floor: int
    ) -> Change: ...
    def delete_alias(self, task: str, name: str, *, expected: int | None, at: float, floor: int) -> Change: ...

    def get_task(self, name: str) -> Task: ...
    def list_tasks(self, *, after: str | None, limit: int) -> tuple[list[Task], bool]: ...
    def get_version(self, task: str, number: int) -> Version: ...
    def list_versions(self, task: str, *, after: int, limit: int) -> tuple[list[Version], bool]: ...
    def list_aliases(self, task: str) -> list[Alias]: ...
    def find_publication(self, publication: str) -> list[Version]:
        """The versions that a publication made and that still exist, by their places in it."""
        ...

    def events(self, after: str, *, limit: int, block_ms: int | None) -> list[Event]: ...
    def dump(self) -> Dump: ...
    def delta(self, after: str, *, epoch: int) -> Delta | None:
        """What changed since `epoch`, whose last event was `after`. None: the events do not tell everything, because
        the stream has forgotten `after`, epochs are missing among them, or there are more than MAX_DELTA."""
        ...

    def restore(self, restoration: Restoration, *, expected_epoch: int) -> int:
        """Put everything back in one atomic step and return the new epoch; Conflict if the epoch has moved on. The new
        epoch leaves one out: its events do not name everything, and by the gap readers know to read it all."""
        ...


MAX_DELTA = 4096  # events; behind more of them, reading everything is not dearer


def public_aliases(task: str, entries: tuple[AliasEntry, ...]) -> list[Alias]:
    """The aliases among `entries` that exist, by name."""
    live = (entry for entry in entries if not entry.deleted)
    return sorted((Alias(task=task, **entry.model_dump()) for entry in live), key=lambda alias: alias.name)


def follows(epochs: Sequence[int], since: int, now: int) -> bool:
    """Whether events of these epochs tell all that happened between two epochs."""
    if len(epochs) > MAX_DELTA:
        return False
    steps = pairwise((since, *epochs))
    return all(before <= after <= before + 1 for before, after in steps) and (epochs[-1] if epochs else since) == now


def alias_in(change: Change, task: str, name: str | None) -> Alias | None:
    """The alias as a change left it; None when it has none of this name."""
    return next((alias for alias in public_aliases(task, change.aliases or ()) if alias.name == name), None)
