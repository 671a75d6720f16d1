"""Putting a rebuilt registry into Redis: one transaction, so that a reader sees none of it or all of it."""

from __future__ import annotations

from typing import Any

import redis

from prompt_store import keys, redis_records
from prompt_store.errors import Conflict
from prompt_store.metadata import Restoration, Tombstone
from prompt_store.scripts import MAX_EVENTS


def restore(client: redis.Redis, restoration: Restoration, expected_epoch: int) -> int:
    """Write everything at one new epoch and return it; Conflict if the epoch has moved on from `expected_epoch`."""
    with client.pipeline(transaction=True) as pipe:
        pipe.watch(keys.EPOCH)  # type: ignore[no-untyped-call]
        if int(pipe.get(keys.EPOCH) or 0) != expected_epoch:
            raise Conflict("the registry changed while it was being rebuilt")
        epoch = max(expected_epoch, restoration.epoch) + 2
        pipe.multi()
        pipe.set(keys.EPOCH, epoch)
        for tombstone in restoration.tombstones:
            _bury(pipe, tombstone)
        for name in restoration.vacated:
            pipe.hdel(keys.TASKS, name)
            pipe.zrem(keys.NAMES, name)
        _restore_records(pipe, restoration)
        for name, number in restoration.numbers.items():
            pipe.hset(keys.NUMBERS, name, str(number))
        for tombstone in restoration.tombstones:
            _emit(pipe, epoch, "task_deleted", tombstone.name, tombstone.task_id, restoration.at)
        for entry in restoration.entries:
            _emit(pipe, epoch, "task", entry.task.name, entry.task.id, restoration.at)
        try:
            pipe.execute()
        except redis.WatchError:
            raise Conflict("the registry changed while it was being rebuilt") from None
    return epoch


def _restore_records(pipe: Any, restoration: Restoration) -> None:
    for entry in restoration.entries:
        pipe.hset(keys.TASKS, entry.task.name, redis_records.task_line(entry))
        pipe.zadd(keys.NAMES, {entry.task.name: 0})
    for version in restoration.versions:
        field = redis_records.version_field(version.task_id, version.number)
        pipe.hset(keys.VERSIONS, field, redis_records.version_body(version))
        pipe.hset(keys.STATES, field, version.state)
        if version.card:
            pipe.hset(keys.CARDS, field, redis_records.card_lines(version.card))
        pipe.hset(keys.PUBLICATIONS, version.publication, field)
    for task_id, entries in restoration.aliases.items():
        pipe.hset(keys.ALIASES, task_id, redis_records.alias_lines(entries))


def _bury(pipe: Any, tombstone: Tombstone) -> None:
    for publication, number in tombstone.publications.items():
        field = redis_records.version_field(tombstone.task_id, number)
        pipe.hset(keys.PUBLICATIONS, publication, field)
        for key in (keys.VERSIONS, keys.STATES, keys.CARDS):
            pipe.hdel(key, field)
    pipe.hset(keys.GRAVES, tombstone.task_id, redis_records.grave_line(tombstone))
    pipe.hdel(keys.ALIASES, tombstone.task_id)


def _emit(pipe: Any, epoch: int, kind: str, task: str, task_id: str, at: float) -> None:
    fields = {
        "epoch": epoch,
        "kind": kind,
        "task": task,
        "task_id": task_id,
        "version": "",
        "alias": "",
        "at": repr(at),
    }
    pipe.xadd(keys.EVENTS, fields, maxlen=MAX_EVENTS, approximate=True)
