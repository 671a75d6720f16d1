"""The lines and JSON that stand in Redis values, to and from records. Pure; the scripts read the same forms.

What reads a value raises CorruptRecord for one that is damaged, or that a newer version of the program has written.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from prompt_store.errors import CorruptRecord
from prompt_store.metadata import AliasEntry, Content, Draft, Dump, TaskEntry, Tombstone
from prompt_store.models import AliasTarget, Evaluation, Event, Share, Task, TaskSpec, Version


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Turn what a value that is no record leads to into CorruptRecord, without its text, which may be a user's."""
    try:
        yield
    except (ValueError, TypeError, LookupError) as error:  # pydantic's among them
        raise CorruptRecord(f"the metadata server holds {what} that cannot be read") from error


def spec_json(spec: TaskSpec) -> str:
    return spec.model_dump_json()


def labels_json(spec: TaskSpec) -> str:
    """The part of a spec that may not change while versions exist, in one form that compares as text."""
    return json.dumps(spec.labels)


def task_line(entry: TaskEntry) -> str:
    task = entry.task
    parts = [task.id, str(entry.base), repr(task.created_at), repr(task.updated_at)]
    return "\n".join([*parts, labels_json(task.spec), spec_json(task.spec)])


def read_task_line(name: str, line: str) -> TaskEntry:
    with reading(f"a record of the task {name}"):
        task_id, base, created_at, updated_at, _, spec = line.split("\n", 5)
        task = Task(
            name=name,
            id=task_id,
            spec=TaskSpec.model_validate_json(spec),
            created_at=float(created_at),
            updated_at=float(updated_at),
        )
        return TaskEntry(task=task, base=int(base))


def content_body(task: str, content: Content, at: float) -> str:
    """The immutable part of a version; its task id and number stand in the field's name."""
    body = {
        "task": task,
        "digest": content.digest,
        "size_bytes": content.size_bytes,
        "meta": content.meta.model_dump(mode="json"),
        "publication": content.publication,
        "created_at": at,
    }
    return json.dumps(body, separators=(",", ":"), ensure_ascii=False)


def version_body(version: Version) -> str:
    body = version.model_dump(mode="json", include={"task", "digest", "size_bytes", "meta", "publication"})
    return json.dumps({**body, "created_at": version.created_at}, separators=(",", ":"), ensure_ascii=False)


def version_field(task_id: str, number: int | str) -> str:
    return f"{task_id}:{number}"


def read_version(field: str, body: str, state: str | None, card: str | None) -> Version:
    with reading(f"a record of the version {field}"):
        task_id, _, number = field.partition(":")
        fields: dict[str, Any] = {**json.loads(body)}
        fields.update(task_id=task_id, number=int(number), state=state, card=read_card(card))
        return Version.model_validate(fields)


def evaluation_line(evaluation: Evaluation) -> str:
    return evaluation.model_dump_json()


def card_lines(card: Sequence[Evaluation]) -> str:
    return "\n".join(evaluation_line(evaluation) for evaluation in card)


def read_card(lines: str | None) -> tuple[Evaluation, ...]:
    return tuple(Evaluation.model_validate_json(line) for line in (lines or "").split("\n") if line)


def alias_lines(entries: Sequence[AliasEntry]) -> str:
    return "\n".join(f"{e.name} {e.revision} {e.updated_at!r} {target_word(e)}" for e in entries)


def read_alias_lines(lines: str | None) -> tuple[AliasEntry, ...]:
    with reading("aliases"):
        rows = (line.split(" ") for line in (lines or "").split("\n") if line)
        return tuple(
            AliasEntry(name=name, revision=int(revision), updated_at=float(updated_at), **read_target_word(target))
            for name, revision, updated_at, target in rows
        )


def target_word(target: AliasTarget) -> str:
    """Where an alias points, as one word that the scripts take apart."""
    if target.split is not None:
        return "split:" + ",".join(f"{share.version}={share.weight!r}" for share in target.split)
    if target.ensemble is not None:
        return f"{target.ensemble.mode}:" + ",".join(map(str, target.ensemble.members))
    return str(target.version)


def read_target_word(word: str) -> dict[str, Any]:
    """The fields of an `AliasTarget` or `AliasEntry`."""
    kind, colon, items = word.partition(":")
    if not colon:
        return {"version": int(word)}
    parts = [item.partition("=") for item in items.split(",")]
    if kind == "split":
        return {"split": tuple(Share(version=int(number), weight=float(weight)) for number, _, weight in parts)}
    return {"ensemble": {"members": tuple(int(number) for number, _, _ in parts), "mode": kind}}


def read_event(event_id: str, fields: Mapping[str, str]) -> Event:
    with reading(f"an event {event_id}"):
        return Event.model_validate(
            {
                "id": event_id,
                "epoch": int(fields["epoch"]),
                "kind": fields["kind"],
                "task": fields["task"],
                "task_id": fields["task_id"],
                "version": int(fields["version"]) if fields["version"] else None,
                "alias": fields["alias"] or None,
                "at": float(fields["at"]),
            }
        )


def grave_line(tombstone: Tombstone) -> str:
    return f"{tombstone.name} {tombstone.last}"


def read_graves(graves: Mapping[str, str], publications: Mapping[str, str]) -> tuple[Tombstone, ...]:
    """The tombstones that the server's graves and publications make together."""
    numbers: dict[str, dict[str, int]] = {task_id: {} for task_id in graves}
    with reading("a record of a deleted task"):
        for publication, field in publications.items():
            task_id, _, number = field.partition(":")
            if task_id in numbers:
                numbers[task_id][publication] = int(number)
        rows = ((task_id, *line.split(" ")) for task_id, line in graves.items())
        return tuple(
            Tombstone(name=name, task_id=task_id, last=int(last), publications=numbers[task_id])
            for task_id, name, last in rows
        )


def stream_entries(reply: Any) -> list[tuple[str, dict[str, str]]]:
    """The entries of one stream out of an XREAD reply, whose shape depends on the protocol's version."""
    if not reply:
        return []
    if isinstance(reply, dict):  # RESP3: {stream: [entries]}, in some clients [[entries]]
        (entries,) = reply.values()
        return entries[0] if entries and isinstance(entries[0], list) else entries
    return list(reply[0][1])


def publish_arguments(draft: Draft, at: float) -> list[str | int]:
    """The arguments of the publish script from the third on."""
    return [
        draft.task,
        draft.publication,
        "" if draft.fence is None else draft.fence,
        draft.new_task_id,
        "" if draft.spec is None else labels_json(draft.spec),
        "" if draft.spec is None else spec_json(draft.spec),
        draft.state,
        draft.alias or "",
        "" if draft.expected is None else draft.expected,
        draft.mode,
        *(
            argument
            for one in draft.contents
            for argument in (one.publication, content_body(draft.task, one, at), card_lines(one.card))
        ),
    ]


def read_dump(
    epoch: str | None,
    newest: Any,
    tasks: Mapping[str, str],
    aliases: Mapping[str, str],
    numbers: Mapping[str, str],
    publications: Mapping[str, str],
    graves: Mapping[str, str],
    bodies: Mapping[str, str],
    states: Mapping[str, str],
    cards: Mapping[str, str],
) -> Dump:
    found = [read_version(field, body, states.get(field), cards.get(field)) for field, body in bodies.items()]
    with reading("a counter"):
        counted, last = int(epoch or 0), {name: int(number) for name, number in numbers.items()}
    return Dump(
        epoch=counted,
        last_event_id=newest[0][0] if newest else "0",
        entries=tuple(read_task_line(name, line) for name, line in sorted(tasks.items())),
        versions=tuple(sorted(found, key=lambda version: (version.task, version.number))),
        aliases={task_id: read_alias_lines(lines) for task_id, lines in aliases.items()},
        numbers=last,
        tombstones=read_graves(graves, publications),
    )
