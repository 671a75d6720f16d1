"""Comparing the metadata server with the record files: what is each side missing? Pure; it changes nothing.

Who is right about a subject (a task, a version, the aliases of a task)? The record files hold every acknowledged
write. The server may hold writes whose writer died before its files, and may have lost writes when it was restored or
replaced. So the files win where their epoch is one that the server has not reached, and where the server does not know
the subject at all; elsewhere the server is as new or newer, and the files are brought up to it. A deletion is final on
whichever side it is known: task ids never come back.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass, field
from typing import Literal

from prompt_store.journal import Journal
from prompt_store.metadata import AliasEntry, Change, Dump, Restoration, TaskEntry, Tombstone, member_place
from prompt_store.models import Record, Version

ProblemKind = Literal[
    "behind",
    "missing_blob",
    "corrupt_blob",
    "missing_in_server",
    "stale_in_server",
    "missing_record",
    "stale_record",
    "unreadable_record",
    "lost_record",
]


class Problem(Record):
    """One thing that is not as it should be. `repaired`: by this very run.

    `behind`: the server's epoch is lower than one on file. `missing_…` and `stale_…` name the side that lacks the
    subject or has an old form of it. `unreadable_record`: a file whose seal is broken; `lost_record`: what it held is
    known to neither side. `missing_blob`, `corrupt_blob`: a version that no replica can load; nothing here mends that.
    """

    kind: ProblemKind
    subject: str
    detail: str = ""
    repaired: bool = False


@dataclass
class Comparison:
    """The differences, and what would have to be written on each side to remove them.

    The epochs of `changes` are the dump's; whoever writes them after a restoration stamps them with the new one.
    """

    journal: Journal
    dump: Dump
    server_tasks: dict[str, TaskEntry] = field(default_factory=dict)  # these three by task id
    server_graves: dict[str, Tombstone] = field(default_factory=dict)
    publications: dict[str, dict[str, int]] = field(default_factory=dict)  # of all versions that either side knows
    live: dict[str, TaskEntry] = field(default_factory=dict)  # tasks that exist, by id
    problems: list[Problem] = field(default_factory=list)
    # for the server
    entries: dict[str, TaskEntry] = field(default_factory=dict)  # every task that is touched, by id
    versions: list[Version] = field(default_factory=list)
    aliases: dict[str, tuple[AliasEntry, ...]] = field(default_factory=dict)
    tombstones: dict[str, Tombstone] = field(default_factory=dict)
    vacated: list[str] = field(default_factory=list)
    numbers: dict[str, int] = field(default_factory=dict)
    # for the record files
    changes: list[Change] = field(default_factory=list)

    def restoration(self, at: float) -> Restoration | None:
        """What the server must be told, or None."""
        if not (self.entries or self.tombstones or self.numbers or self.dump.epoch < self.journal.epoch):
            return None
        return Restoration(
            epoch=self.journal.epoch,
            at=at,
            entries=tuple(self.entries.values()),
            versions=tuple(self.versions),
            aliases=self.aliases,
            tombstones=tuple(self.tombstones.values()),
            vacated=tuple(self.vacated),
            numbers=self.numbers,
        )

    def live_versions(self) -> list[Version]:
        """The versions that exist after the differences are removed."""
        versions = {(version.task_id, version.number): version for version in self.dump.versions}
        versions |= {key: record.version for key, record in self.journal.versions.items()}
        return [version for key, version in versions.items() if key[0] in self.live]

    def server_lacks(self, epoch: int, *, known: bool) -> bool:
        return not known or epoch > self.dump.epoch

    def report(self, kind: ProblemKind, subject: str, detail: str = "") -> None:
        self.problems.append(Problem(kind=kind, subject=subject, detail=detail))


def compare(journal: Journal, dump: Dump) -> Comparison:
    """Everything in which the two differ."""
    found = Comparison(
        journal,
        dump,
        server_tasks={entry.task.id: entry for entry in dump.entries},
        server_graves={tombstone.task_id: tombstone for tombstone in dump.tombstones},
    )
    for version in (*dump.versions, *(record.version for record in journal.versions.values())):
        found.publications.setdefault(version.task_id, {})[version.publication] = version.number
    if dump.epoch < journal.epoch:
        found.report("behind", "epoch", f"server {dump.epoch}, record files {journal.epoch}")
    for name in journal.unreadable:
        found.report("unreadable_record", name)
    found.live = _settle_tasks(found)
    _compare_versions(found)
    _compare_aliases(found)
    _compare_numbers(found)
    return found


def _settle_tasks(found: Comparison) -> dict[str, TaskEntry]:
    """Decide which tasks live, by id, and note what each side must learn of those and of the dead."""
    records = found.journal.tasks.items()
    dead = found.server_graves | {
        task_id: record.tombstone for task_id, record in records if record.tombstone is not None
    }
    live: dict[str, tuple[int, TaskEntry]] = {}  # name -> epoch that speaks for it, entry
    for epoch, entry in sorted(_candidates(found, dead), key=lambda candidate: candidate[0]):
        if entry.task.name in live:
            # Two tasks of one name: the older one was deleted, and the record of that was lost.
            _, older = live[entry.task.name]
            dead[older.task.id] = Tombstone(
                name=older.task.name, task_id=older.task.id, last=older.base, publications={}
            )
        live[entry.task.name] = (epoch, entry)
    for tombstone in dead.values():
        _compare_tombstone(found, _complete(found, tombstone))
    alive = {entry.task.id: entry for _, entry in live.values()}
    for entry in alive.values():
        _compare_task(found, entry)
    return alive


def _candidates(found: Comparison, dead: Container[str]) -> Iterable[tuple[int, TaskEntry]]:
    """Every task that no side knows to be deleted, in its newer form, with the epoch that speaks for it."""
    known = found.server_tasks
    for task_id, record in found.journal.tasks.items():
        if record.entry is not None and task_id not in dead:
            if found.server_lacks(record.epoch, known=task_id in known):
                yield record.epoch, record.entry
            else:
                yield found.dump.epoch, known[task_id]
    for task_id, entry in known.items():
        if task_id not in found.journal.tasks and task_id not in dead:
            yield found.dump.epoch, entry


def _compare_task(found: Comparison, entry: TaskEntry) -> None:
    task_id, subject = entry.task.id, f"task {entry.task.name}"
    server, record = found.server_tasks.get(task_id), found.journal.tasks.get(task_id)
    if server != entry:
        found.report("stale_in_server" if server else "missing_in_server", subject)
        found.entries[task_id] = entry
    if record is None or record.entry != entry:
        _tell_files(found, "stale_record" if record else "missing_record", subject, task_id, entry=entry)


def _complete(found: Comparison, tombstone: Tombstone) -> Tombstone:
    """The tombstone with all publications that either side knows of."""
    task_id = tombstone.task_id
    publications = found.publications.get(task_id, {}) | tombstone.publications
    if task_id in found.server_graves:
        publications |= found.server_graves[task_id].publications
    last = max([tombstone.last, *publications.values()])
    return tombstone.model_copy(update={"publications": publications, "last": last})


def _compare_tombstone(found: Comparison, tombstone: Tombstone) -> None:
    task_id, subject = tombstone.task_id, f"task {tombstone.name} ({tombstone.task_id})"
    server, record = found.server_graves.get(task_id), found.journal.tasks.get(task_id)
    if record is None or record.tombstone is None:
        _tell_files(found, "stale_record" if record else "missing_record", subject, task_id, tombstone=tombstone)
    occupied = task_id in found.server_tasks
    if server is None or occupied or server.publications != tombstone.publications:
        found.report("stale_in_server", subject, "it was deleted")
        found.tombstones[task_id] = tombstone
        if occupied:
            found.vacated.append(tombstone.name)


def _compare_versions(found: Comparison) -> None:
    server = {(version.task_id, version.number): version for version in found.dump.versions}
    for key, record in found.journal.versions.items():
        version, present = record.version, server.get(key)
        subject = f"version {version.task}@{version.number}"
        if key[0] not in found.live:
            if key[0] not in found.journal.tasks and key[0] not in found.tombstones:
                found.report("lost_record", subject, "its task is known to neither side")
        elif not found.server_lacks(record.epoch, known=present is not None):
            assert present is not None
            if present != version:
                _tell_files(found, "stale_record", subject, key[0], version=present)
        elif present != version and not (present is None and _is_half(found, key, version.publication)):
            found.report("stale_in_server" if present else "missing_in_server", subject)
            found.versions.append(version)
            found.entries[key[0]] = found.live[key[0]]
    for key, version in server.items():
        if key not in found.journal.versions and key[0] in found.live:
            _tell_files(found, "missing_record", f"version {version.task}@{version.number}", key[0], version=version)


def _is_half(found: Comparison, key: tuple[str, int], publication: str) -> bool:
    """Whether it is what is left of a joint publication that nobody was told of: its writer died between the files, and
    the server forgot the rest. Its number stays used."""
    first = (key[0], key[1] - member_place(publication) + 1)
    return first not in found.journal.versions and not found.journal.has_unreadable_version(*first)


def _compare_aliases(found: Comparison) -> None:
    for task_id, entry in found.live.items():
        record, present = found.journal.aliases.get(task_id), found.dump.aliases.get(task_id, ())
        recorded = record.aliases if record else ()
        if recorded == present:
            continue
        subject = f"aliases of {entry.task.name}"
        if record is not None and found.server_lacks(record.epoch, known=bool(present)):
            found.report("stale_in_server" if present else "missing_in_server", subject)
            found.aliases[task_id] = recorded
            found.entries[task_id] = entry
        else:
            _tell_files(found, "stale_record" if record else "missing_record", subject, task_id, aliases=present)


def _compare_numbers(found: Comparison) -> None:
    """The counters must stand at least where the files have seen them."""
    for record in found.journal.versions.values():
        _raise_number(found, record.version.task, record.version.number)
    for task in found.journal.tasks.values():
        if task.tombstone is not None:
            _raise_number(found, task.tombstone.name, task.tombstone.last)
    for tombstone in found.tombstones.values():
        _raise_number(found, tombstone.name, tombstone.last)
    for entry in found.entries.values():
        _raise_number(found, entry.task.name, entry.base)


def _raise_number(found: Comparison, name: str, number: int) -> None:
    if number > max(found.dump.numbers.get(name, 0), found.numbers.get(name, 0)):
        found.numbers[name] = number


def _tell_files(
    found: Comparison,
    kind: ProblemKind,
    subject: str,
    task_id: str,
    *,
    entry: TaskEntry | None = None,
    version: Version | None = None,
    aliases: tuple[AliasEntry, ...] | None = None,
    tombstone: Tombstone | None = None,
) -> None:
    found.report(kind, subject)
    versions = () if version is None else (version,)
    found.changes.append(Change(found.dump.epoch, task_id, entry, versions, aliases, tombstone))
