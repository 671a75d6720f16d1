"""The registry in a Redis-protocol server (Redis 7.2 or later, Valkey): each write is one script, each list a page.

A lost connection leaves a write's outcome unknown. Writes that may be repeated without harm (publish, put_task,
set_state, append_evaluation) are retried; moving or deleting is tried once, and StoreUnavailable says so.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import redis
from redis.backoff import ExponentialWithJitterBackoff, NoBackoff
from redis.retry import Retry

from prompt_store import keys, redis_records, scripts
from prompt_store.breaker import Breaker, CircuitOpen, retry_of
from prompt_store.errors import (
    AliasNotFound,
    Conflict,
    CorruptRecord,
    Fenced,
    RevisionMismatch,
    StoreBehind,
    StoreUnavailable,
    TaskNotFound,
    VersionInUse,
    VersionNotFound,
)
from prompt_store.metadata import (
    MAX_DELTA,
    Change,
    Delta,
    Draft,
    Dump,
    Restoration,
    Tombstone,
    member_keys,
    public_aliases,
)
from prompt_store.models import Alias, AliasTarget, Evaluation, Event, Task, TaskSpec, Version, VersionState
from prompt_store.redis_delta import READ_DELTA, read_delta
from prompt_store.redis_restore import restore
from prompt_store.redis_url import client_from_url

DEFAULT_TIMEOUT_S = 2.0
_RETRIES = 3
# A longer wait for events is several: a server that hangs is noticed in between.
_LONGEST_WAIT_S = 1.0


class RedisMetadata:
    """Implements `Metadata`. Thread-safe; connects on first use."""

    def __init__(self, url: str, *, timeout_s: float = DEFAULT_TIMEOUT_S, breaker: Breaker | None = None) -> None:
        """`timeout_s` bounds connecting and each reply; a retried call takes at most about four times as long. With a
        `breaker`, calls fail at once while the server does not answer."""
        backoff = ExponentialWithJitterBackoff(cap=min(0.5, timeout_s), base=0.02)
        self._client = _connect(url, timeout_s, retry_of(backoff, _RETRIES, breaker))
        self._once = _connect(url, timeout_s, retry_of(NoBackoff(), 0, breaker))
        self._waiting = _connect(url, timeout_s + _LONGEST_WAIT_S, retry_of(NoBackoff(), 1, breaker))
        self._scripts = {text: self._client.register_script(text) for text in _ALL_SCRIPTS}

    def close(self) -> None:
        self._client.close()
        self._once.close()
        self._waiting.close()

    # writes

    def put_task(self, name: str, spec: TaskSpec, *, new_task_id: str, at: float, floor: int) -> Change:
        labels, text = redis_records.labels_json(spec), redis_records.spec_json(spec)
        reply = self._run(scripts.PUT_TASK, floor, at, name, new_task_id, labels, text)
        if reply[0] == "labels":
            raise Conflict(f"the labels of task {name} may not change while it has versions", param="labels")
        entry = redis_records.read_task_line(name, reply[2])
        task_id = entry.task.id  # an id is given once: a task of this one was made by this call, sent again or not
        return Change(epoch=int(reply[1]), task_id=task_id, entry=entry, created=task_id == new_task_id)

    def delete_task(self, name: str, *, at: float, floor: int) -> Change:
        reply = self._run(scripts.DELETE_TASK, floor, at, name, retry=False)
        _check_found(reply, name)
        task_id = reply[2]
        tombstone = Tombstone(
            name=name,
            task_id=task_id,
            last=int(reply[3]),
            publications=dict(zip(reply[4::2], map(int, reply[5::2]), strict=True)),
        )
        return Change(epoch=int(reply[1]), task_id=task_id, tombstone=tombstone)

    def publish(self, draft: Draft, *, at: float, floor: int) -> Change:
        reply = self._run(scripts.PUBLISH, floor, at, *redis_records.publish_arguments(draft, at))
        if reply[0] == "fenced":
            raise Fenced(
                f"publication {draft.publication} belongs to token {reply[1]} by now, not {draft.fence}", param="fence"
            )
        if reply[0] == "elsewhere":
            raise Conflict(
                f"publication {draft.publication} was made already, for another or a deleted task", param="publication"
            )
        _check_found(reply, draft.task)
        _check_revision(reply, draft.alias or "")
        return _version_change(draft.task, reply)

    def raise_fence(self, publication: str, fence: int) -> int:
        return int(self._run(scripts.RAISE_FENCE, 0, 0.0, publication, fence)[1])

    def set_state(self, task: str, number: int, state: VersionState, *, at: float, floor: int) -> Change:
        reply = self._run(scripts.SET_STATE, floor, at, task, number, state)
        _check_found(reply, task, number)
        if reply[0] == "in_use":
            raise VersionInUse(f"{task}@{number} is what {task}:{reply[1]} points to", param="version")
        return _version_change(task, reply, aliases=False)

    def append_evaluation(self, task: str, number: int, evaluation: Evaluation, *, at: float, floor: int) -> Change:
        line = redis_records.evaluation_line(evaluation)
        reply = self._run(scripts.APPEND_EVALUATION, floor, at, task, number, line)
        _check_found(reply, task, number)
        return _version_change(task, reply, aliases=False)

    def move_alias(
        self, task: str, name: str, target: AliasTarget, *, expected: int | None, at: float, floor: int
    ) -> Change:
        wanted = "" if expected is None else expected
        word = redis_records.target_word(target)
        reply = self._run(scripts.MOVE_ALIAS, floor, at, task, name, word, wanted, retry=False)
        if reply[0] in ("no_version", "unfit"):
            place, number = target.places[int(reply[1]) - 1]
            if reply[0] == "no_version":
                raise _no_version(task, number, param=place)
            raise Conflict(f"{task}@{number} is {reply[2]}: no alias may point to it", param=place)
        _check_found(reply, task)
        _check_revision(reply, name)
        return _alias_change(reply)

    def delete_alias(self, task: str, name: str, *, expected: int | None, at: float, floor: int) -> Change:
        wanted = "" if expected is None else expected
        reply = self._run(scripts.DELETE_ALIAS, floor, at, task, name, wanted, retry=False)
        _check_found(reply, task)
        if reply[0] == "no_alias":
            raise AliasNotFound(f"task {task} has no alias {name}", param="alias")
        _check_revision(reply, name)
        return _alias_change(reply)

    def restore(self, restoration: Restoration, *, expected_epoch: int) -> int:
        with _unavailable():
            return restore(self._once, restoration, expected_epoch)

    def _run(self, script: str, floor: int, at: float, *arguments: str | int, retry: bool = True) -> list[str]:
        client = self._client if retry else self._once
        with _unavailable(None if retry else "whether it took effect is not known: look before trying again"):
            reply: list[str] = self._scripts[script](keys.ALL, [floor, repr(at), *arguments], client=client)
        if reply[0] == "behind":
            raise StoreBehind(
                f"the metadata server is at epoch {reply[1]}, but the record files know of {floor}: rebuild it first"
            )
        return reply

    # reads

    def epoch(self) -> int:
        with _unavailable():
            return int(self._client.get(keys.EPOCH) or 0)

    def get_task(self, name: str) -> Task:
        with _unavailable():
            line: Any = self._client.hget(keys.TASKS, name)
        if line is None:
            raise _no_task(name)
        return redis_records.read_task_line(name, line).task

    def list_tasks(self, *, after: str | None, limit: int) -> tuple[list[Task], bool]:
        with _unavailable():
            start = "-" if after is None else f"({after}"
            names: Any = self._client.zrangebylex(keys.NAMES, start, "+", start=0, num=limit + 1)
            lines: Any = self._client.hmget(keys.TASKS, names[:limit]) if names else []
        # a line may be gone by now: deleted between the two reads
        tasks = [
            redis_records.read_task_line(name, line).task for name, line in zip(names, lines, strict=False) if line
        ]
        return tasks, len(names) > limit

    def get_version(self, task: str, number: int) -> Version:
        found = self._versions(self.get_task(task).id, [number])
        if not found:
            raise _no_version(task, number)
        return found[0]

    def list_versions(self, task: str, *, after: int, limit: int) -> tuple[list[Version], bool]:
        with _unavailable():
            line: Any = self._client.hget(keys.TASKS, task)
            last = int(self._client.hget(keys.NUMBERS, task) or 0)
        if line is None:
            raise _no_task(task)
        entry = redis_records.read_task_line(task, line)
        first = max(after, entry.base) + 1
        numbers = range(first, min(last, first + limit - 1) + 1)
        return self._versions(entry.task.id, numbers), last >= first + limit

    def _versions(self, task_id: str, numbers: Sequence[int]) -> list[Version]:
        if not numbers:
            return []
        fields = [redis_records.version_field(task_id, number) for number in numbers]
        with _unavailable(), self._client.pipeline(transaction=True) as pipe:
            for key in (keys.VERSIONS, keys.STATES, keys.CARDS):
                pipe.hmget(key, fields)
            bodies, states, cards = pipe.execute()
        rows = zip(fields, bodies, states, cards, strict=True)
        return [redis_records.read_version(field, body, state, card) for field, body, state, card in rows if body]

    def list_aliases(self, task: str) -> list[Alias]:
        task_id = self.get_task(task).id
        with _unavailable():
            lines: Any = self._client.hget(keys.ALIASES, task_id)
        return public_aliases(task, redis_records.read_alias_lines(lines))

    def find_publication(self, publication: str) -> list[Version]:
        with _unavailable():
            fields: Any = self._client.hmget(keys.PUBLICATIONS, member_keys(publication))
            parts = (field.partition(":") for field in fields if field)
            found = [(task_id, int(number)) for task_id, _, number in parts]
        return self._versions(found[0][0], [number for _, number in found]) if found else []

    def events(self, after: str, *, limit: int, block_ms: int | None) -> list[Event]:
        deadline = time.monotonic() + (block_ms or 0) / 1000
        while True:
            rest = min(deadline - time.monotonic(), _LONGEST_WAIT_S)
            client, block = (self._waiting, max(1, int(rest * 1000))) if rest > 0 else (self._client, None)
            with _unavailable():
                reply: Any = client.xread({keys.EVENTS: after}, count=limit, block=block)
            if reply or time.monotonic() >= deadline:
                return [redis_records.read_event(*entry) for entry in redis_records.stream_entries(reply)]

    def dump(self) -> Dump:
        with _unavailable(), self._client.pipeline(transaction=True) as pipe:
            pipe.get(keys.EPOCH)
            pipe.xrevrange(keys.EVENTS, count=1)
            for key in _DUMPED:
                pipe.hgetall(key)
            return redis_records.read_dump(*pipe.execute())

    def delta(self, after: str, *, epoch: int) -> Delta | None:
        with _unavailable():
            reply = self._scripts[READ_DELTA](keys.ALL, [after, epoch, MAX_DELTA])
        return read_delta(reply)


# what a dump reads, in the order in which `read_dump` takes it; the last three are the versions'
_DUMPED = (
    keys.TASKS,
    keys.ALIASES,
    keys.NUMBERS,
    keys.PUBLICATIONS,
    keys.GRAVES,
    keys.VERSIONS,
    keys.STATES,
    keys.CARDS,
)
_ALL_SCRIPTS = (
    scripts.PUBLISH,
    scripts.PUT_TASK,
    scripts.DELETE_TASK,
    scripts.SET_STATE,
    scripts.APPEND_EVALUATION,
    scripts.MOVE_ALIAS,
    scripts.DELETE_ALIAS,
    scripts.RAISE_FENCE,
    READ_DELTA,
)


def _connect(url: str, timeout_s: float, retry: Retry) -> redis.Redis:
    return client_from_url(
        url,
        decode_responses=True,
        socket_timeout=timeout_s,
        socket_connect_timeout=min(1.0, timeout_s),
        retry=retry,
    )


@contextmanager
def _unavailable(outcome: str | None = None) -> Iterator[None]:
    """Turn every error of the client into StoreUnavailable, without its text, which may hold an address, and values
    that are no text or no numbers into CorruptRecord."""
    try:
        yield
    except CircuitOpen as error:
        raise StoreUnavailable("the metadata server has not answered lately; it was not asked") from error
    except redis.RedisError as error:
        message = f"the metadata server does not answer ({type(error).__name__})"
        raise StoreUnavailable(f"{message}; {outcome}" if outcome else message) from error
    except ValueError as error:
        raise CorruptRecord("the metadata server holds a value that cannot be read") from error


def _no_task(name: str) -> TaskNotFound:
    return TaskNotFound(f"no task {name}", param="task")


def _no_version(task: str, number: int | None, *, param: str = "version") -> VersionNotFound:
    return VersionNotFound(f"task {task} has no version {number}", param=param)


def _check_found(reply: list[str], task: str, number: int | None = None) -> None:
    if reply[0] == "no_task":
        raise _no_task(task)
    if reply[0] == "no_version":
        raise _no_version(task, number)


def _check_revision(reply: list[str], alias: str) -> None:
    if reply[0] == "revision":
        current = int(reply[1])
        found = f"is at revision {current}" if current else "does not exist"
        raise RevisionMismatch(f"the alias {alias} {found}", current=current or None, param="alias")


def _version_change(task: str, reply: list[str], *, aliases: bool = True) -> Change:
    epoch, created, line, lines = reply[1:5]
    entry = redis_records.read_task_line(task, line)
    rows = zip(reply[5::4], reply[6::4], reply[7::4], reply[8::4], strict=True)
    return Change(
        epoch=int(epoch),
        task_id=entry.task.id,
        entry=entry,
        versions=tuple(
            redis_records.read_version(redis_records.version_field(entry.task.id, number), body, state, card)
            for number, body, state, card in rows
        ),
        aliases=redis_records.read_alias_lines(lines) if aliases else None,
        created=created == "1",
    )


def _alias_change(reply: list[str]) -> Change:
    return Change(epoch=int(reply[1]), task_id=reply[2], aliases=redis_records.read_alias_lines(reply[3]))
