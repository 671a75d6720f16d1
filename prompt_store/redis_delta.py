"""What changed behind a place in the event stream, read from Redis in one step: the events, and all that they name.

One step, because an alias read a moment after the versions could point to one that was not read.
"""

from __future__ import annotations

from typing import Any

from prompt_store import redis_records
from prompt_store.metadata import Delta

READ_DELTA = """
-- KEYS   as in all scripts (keys.ALL)
-- ARGV   1 id of the last event known, 0: none  2 epoch it led to  3 most events to read
-- reply  all: read everything
--        ok EPOCH LAST_EVENT_ID then two lists: name, task line or '', alias lines; field, body, state, card
local after, epoch, most = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local from = '-'
if after ~= '0' then
  if #redis.call('XRANGE', KEYS[2], after, after) == 0 then return {'all'} end
  from = '(' .. after
end
local events = redis.call('XRANGE', KEYS[2], from, '+', 'COUNT', most + 1)
if #events > most then return {'all'} end

local names, fields = {}, {}
for _, entry in ipairs(events) do
  local event = {}
  for i = 1, #entry[2], 2 do event[entry[2][i]] = entry[2][i + 1] end
  local reached = tonumber(event.epoch)
  if reached < epoch or reached > epoch + 1 then return {'all'} end
  epoch, after = reached, entry[1]
  names[event.task] = true
  if event.version ~= '' then fields[event.task_id .. ':' .. event.version] = true end
end
if epoch ~= tonumber(redis.call('GET', KEYS[1]) or '0') then return {'all'} end

local tasks, versions = {}, {}
for name in pairs(names) do
  local line = redis.call('HGET', KEYS[3], name) or ''
  table.insert(tasks, name)
  table.insert(tasks, line)
  table.insert(tasks, line == '' and '' or redis.call('HGET', KEYS[9], string.match(line, '^[^\\n]*')) or '')
end
for field in pairs(fields) do
  local body = redis.call('HGET', KEYS[6], field)
  if body then
    table.insert(versions, field)
    table.insert(versions, body)
    table.insert(versions, redis.call('HGET', KEYS[7], field))
    table.insert(versions, redis.call('HGET', KEYS[8], field) or '')
  end
end
return {'ok', tostring(epoch), after, tasks, versions}
"""


def read_delta(reply: list[Any]) -> Delta | None:
    """The script's reply; None for `all`."""
    if reply[0] == "all":
        return None
    _, epoch, last_event_id, tasks, parts = reply
    lines = list(zip(tasks[::3], tasks[1::3], tasks[2::3], strict=True))
    entries = {name: redis_records.read_task_line(name, line) if line else None for name, line, _ in lines}
    rows = zip(parts[::4], parts[1::4], parts[2::4], parts[3::4], strict=True)
    versions = [redis_records.read_version(field, body, state, card) for field, body, state, card in rows]
    return Delta(
        epoch=int(epoch),
        last_event_id=last_event_id,
        entries=entries,
        versions=tuple(sorted(versions, key=lambda version: version.number)),
        aliases={
            entry.task.id: redis_records.read_alias_lines(aliases)
            for (name, _, aliases) in lines
            if (entry := entries[name]) is not None
        },
    )
