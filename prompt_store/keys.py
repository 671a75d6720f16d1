"""Every Redis key of the store. Nothing else in this package spells one.

The set is fixed: names and numbers chosen by users or by the store are hash fields, never parts of a key, so each
script can declare all keys it touches. Each value is a line of text that only `records.py` and the scripts read.
"""

from __future__ import annotations

EPOCH = "chorus:epoch"  # string: counter of committed changes
EVENTS = "chorus:events"  # stream: one entry per event, trimmed
TASKS = "chorus:tasks"  # hash: task name -> task line
NAMES = "chorus:task-names"  # sorted set of task names, all with score 0, for pages in order
NUMBERS = "chorus:numbers"  # hash: task name -> last version number given; outlives the task
VERSIONS = "chorus:versions"  # hash: `id:number` -> immutable body, JSON
STATES = "chorus:states"  # hash: `id:number` -> state
CARDS = "chorus:cards"  # hash: `id:number` -> evaluations, JSON lines
ALIASES = "chorus:aliases"  # hash: task id -> alias lines
PUBLICATIONS = "chorus:publications"  # hash: publication -> `id:number`; outlives the task
FENCES = "chorus:fences"  # hash: publication -> highest fencing token seen
GRAVES = "chorus:graves"  # hash: id of a deleted task -> `name last-number`

# The order in which every script receives them: KEYS[1] is EPOCH, KEYS[12] is GRAVES.
ALL = (EPOCH, EVENTS, TASKS, NAMES, NUMBERS, VERSIONS, STATES, CARDS, ALIASES, PUBLICATIONS, FENCES, GRAVES)
