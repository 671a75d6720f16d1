"""The aliases of one task as the registry in memory keeps them: pure rules over tuples of entries."""

from __future__ import annotations

from prompt_store.errors import RevisionMismatch, VersionInUse
from prompt_store.metadata import AliasEntry
from prompt_store.models import PROD, AliasTarget

Entries = tuple[AliasEntry, ...]


def find(entries: Entries, name: str) -> AliasEntry | None:
    """The entry of that name, deleted or not."""
    return next((entry for entry in entries if entry.name == name), None)


def check_revision(entries: Entries, name: str, expected: int | None) -> None:
    """Raise RevisionMismatch unless the alias is at `expected`; 0: does not exist; None: anything will do."""
    entry = find(entries, name)
    current = entry.revision if entry is not None and not entry.deleted else 0
    if expected is not None and expected != current:
        found = f"is at revision {current}" if current else "does not exist"
        raise RevisionMismatch(f"the alias {name} {found}", current=current or None, param="alias")


def check_unused(entries: Entries, task: str, number: int) -> None:
    """Raise VersionInUse if an alias mentions the version."""
    for entry in entries:
        if number in entry.versions:
            raise VersionInUse(f"{task}@{number} is what {task}:{entry.name} points to", param="version")


def pointed(entries: Entries, name: str, target: AliasTarget, at: float) -> Entries:
    """With the alias at its next revision; a new one comes last."""
    known = find(entries, name)
    revision = 1 if known is None else known.revision + 1
    return _with(entries, AliasEntry(name=name, revision=revision, updated_at=at, **target.model_dump()))


def without(entries: Entries, name: str, at: float) -> Entries:
    """With the alias deleted; its entry stays for its revision."""
    known = find(entries, name)
    assert known is not None
    return _with(entries, AliasEntry(name=name, version=0, revision=known.revision, updated_at=at))


def names_to_move(alias: str | None, *, first: bool) -> list[str]:
    """The first version of a task is its `prod` too, whatever other alias it was published under."""
    if alias is None:
        return []
    return [alias, PROD] if first and alias != PROD else [alias]


def _with(entries: Entries, moved: AliasEntry) -> Entries:
    table = {entry.name: entry for entry in entries}
    table[moved.name] = moved
    return tuple(table.values())
