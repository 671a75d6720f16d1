"""Comparing the metadata server with the record files: what is each side missing? Pure; it changes nothing.

Who is right about a subject (a task, a version, the aliases of a task)? The record files hold every acknowledged
write. The server may hold writes whose writer died before its files, and may have lost writes when it was restored or
replaced. So the files win where their epoch is one that the server has not reached, and where the server does not know
the subject at all; elsewhere the server is as new or newer, and the files are brought up to it. A deletion is final on
whichever side it is known: task ids never come back.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from prompt_store.journal import Journal
from prompt_store.metadata import AliasEntry, Change, Dump, Restoration, TaskEntry, Tombstone
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
]


class Problem(Record):
    """One thing that is not as it should be. `repaired`: by this very run."""

    kind: ProblemKind
    subject: str
    detail: str = ""
    repaired: bool = False


@dataclass
class Comparison:
    """The differences, and what would have to be written on each side to remove them."""

    journal: Journal
    dump: Dump
    problems: list[Problem] = field(default_factory=list)
    # for the server
    entries: dict[str, TaskEntry] = field(default_factory=dict)  # every task that is touched, by id
    versions: list[Version] = field(default_factory=list)
    aliases: dict[str, tuple[AliasEntry, ...]] = field(default_factory=dict)
    tombstones: dict[str, Tombstone] = field(default_factory=dict)
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
            numbers=self.numbers,
        )

    def server_lacks(self, epoch: int, *, known: bool) -> bool:
        return not known or epoch > self.dump.epoch

    def report(self, kind: ProblemKind, subject: str, detail: str = "") -> None:
        self.problems.append(Problem(kind=kind, subject=subject, detail=detail))


def compare(journal: Journal, dump: Dump) -> Comparison:
    """Everything in which the two differ."""
    found = Comparison(journal, dump)
    if dump.epoch < journal.epoch:
        found.report("behind", "epoch", f"server {dump.epoch}, record files {journal.epoch}")
    for name in journal.unreadable:
        found.report("unreadable_record", name)
    live = _settle_tasks(found)
    _compare_versions(found, live)
    _compare_aliases(found, live)
    _compare_numbers(found)
    return found


def _settle_tasks(found: Comparison) -> dict[str, TaskEntry]:
    """Decide which tasks live, by id, and note what each side must learn of it."""
    records = found.journal.tasks
    known = {entry.task.id: entry for entry in found.dump.entries}
    live: dict[str, tuple[int, TaskEntry]] = {}  # name -> epoch, entry
    losers: list[TaskEntry] = []
    for epoch, entry in _candidates(found, known):
        rival = live.get(entry.task.name)
        if rival is None or rival[0] < epoch:
            live[entry.task.name] = (epoch, entry)
            losers += [rival[1]] if rival else []
        else:
            losers.append(entry)
    for loser in losers:
        _bury(found, loser, known)
    for task_id, record in records.items():
        if record.tombstone is not None:
            _compare_tombstone(found, record.tombstone, known.get(task_id))
    return {entry.task.id: entry for _, entry in live.values()}


def _candidates(found: Comparison, known: dict[str, TaskEntry]) -> Iterable[tuple[int, TaskEntry]]:
    """Every task that no side knows to be deleted, in its newer form, with the epoch that speaks for it."""
    records = found.journal.tasks
    for task_id, record in records.items():
        entry = record.entry
        if entry is None:
            continue
        server = known.get(task_id)
        if found.server_lacks(record.epoch, known=server is not None):
            if server != entry:
                found.report("stale_in_server" if server else "missing_in_server", f"task {entry.task.name}")
                found.entries[task_id] = entry
            yield record.epoch, entry
        else:
            assert server is not None
            if server != entry:
                _tell_files(found, "stale_record", f"task {entry.task.name}", task_id, entry=server)
            yield found.dump.epoch, server
    for task_id, entry in known.items():
        if task_id not in records:
            _tell_files(found, "missing_record", f"task {entry.task.name}", task_id, entry=entry)
            yield found.dump.epoch, entry


def _bury(found: Comparison, loser: TaskEntry, known: dict[str, TaskEntry]) -> None:
    """Two tasks of one name: the older one was deleted, and the record of that was lost."""
    task = loser.task
    found.entries.pop(task.id, None)
    tombstone = Tombstone(name=task.name, task_id=task.id, last=loser.base, publications={})
    tombstone = _with_publications(found, tombstone)
    _tell_files(found, "stale_record", f"task {task.name} ({task.id})", task.id, tombstone=tombstone)
    _compare_tombstone(found, tombstone, known.get(task.id))


def _with_publications(found: Comparison, tombstone: Tombstone) -> Tombstone:
    """The tombstone with all publications that either side knows of."""
    versions = [version for version in found.dump.versions if version.task_id == tombstone.task_id]
    versions += [r.version for (task_id, _), r in found.journal.versions.items() if task_id == tombstone.task_id]
    publications = {version.publication: version.number for version in versions} | tombstone.publications
    last = max([tombstone.last, *publications.values()])
    return tombstone.model_copy(update={"publications": publications, "last": last})


def _compare_tombstone(found: Comparison, tombstone: Tombstone, server: TaskEntry | None) -> None:
    wanted = {name: f"{tombstone.task_id}:{number}" for name, number in tombstone.publications.items()}
    if server is None and wanted.items() <= found.dump.publications.items():
        return
    found.report("stale_in_server", f"task {tombstone.name} ({tombstone.task_id})", "deleted")
    found.tombstones[tombstone.task_id] = _with_publications(found, tombstone)


def _compare_versions(found: Comparison, live: dict[str, TaskEntry]) -> None:
    server = {(version.task_id, version.number): version for version in found.dump.versions}
    for key, record in found.journal.versions.items():
        version, present = record.version, server.get(key)
        subject = f"version {version.task}@{version.number}"
        if key[0] not in live:
            if key[0] not in found.journal.tasks:
                found.report("missing_in_server", subject, "the record of its task is lost")
        elif not found.server_lacks(record.epoch, known=present is not None):
            assert present is not None
            if present != version:
                _tell_files(found, "stale_record", subject, key[0], version=present)
        elif present != version:
            found.report("stale_in_server" if present else "missing_in_server", subject)
            found.versions.append(version)
            found.entries[key[0]] = live[key[0]]
    for key, version in server.items():
        if key not in found.journal.versions and key[0] in live:
            _tell_files(found, "missing_record", f"version {version.task}@{version.number}", key[0], version=version)


def _compare_aliases(found: Comparison, live: dict[str, TaskEntry]) -> None:
    for task_id, entry in live.items():
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
        if task.entry is not None:
            _raise_number(found, task.entry.task.name, task.entry.base)


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
    found.changes.append(Change(found.dump.epoch, task_id, entry, version, aliases, tombstone))
