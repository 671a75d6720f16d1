"""The Lua scripts: each is one atomic change of the registry. Python's rules (patterns, labels, digests) stay outside.

Every script receives the same keys, `keys.ALL`, and its first two arguments are the same. What a client wrote as JSON
is opaque here and is never decoded and encoded again: that would round numbers and turn empty lists into objects.
Replies are lists of strings, the first of which is a status; `redis_metadata.py` reads them.

Lines, the values that the scripts do take apart:

    task line     id \\n base \\n created_at \\n updated_at \\n labels (JSON) \\n spec (JSON)
    alias lines   name revision updated_at target      one per alias
    target        `3`; `split:3=0.9,4=0.1`; `vote:1,2,3`; `mean:1,2`; `0`: deleted, kept for its revision
"""

from __future__ import annotations

MAX_EVENTS = 10_000  # kept in the stream; who falls further behind reconciles by the epoch

_PRELUDE = f"""
-- KEYS   1 epoch  2 events  3 tasks  4 task names  5 numbers  6 versions  7 states  8 cards  9 aliases
--        10 publications  11 fences  12 graves
-- ARGV   1 floor: an epoch the caller has seen; a server behind it has lost writes  2 now, seconds
local epoch = tonumber(redis.call('GET', KEYS[1]) or '0')
if epoch < tonumber(ARGV[1]) then return {{'behind', tostring(epoch)}} end
local now = ARGV[2]

local function read_task(name)
  local line = redis.call('HGET', KEYS[3], name)
  if not line then return nil end
  local id, base, created, updated, labels, spec = string.match(line, '^(.-)\\n(.-)\\n(.-)\\n(.-)\\n(.-)\\n(.*)$')
  return {{id = id, base = base, created = created, updated = updated, labels = labels, spec = spec, line = line}}
end

local function write_task(name, task)
  task.line = table.concat({{task.id, task.base, task.created, task.updated, task.labels, task.spec}}, '\\n')
  redis.call('HSET', KEYS[3], name, task.line)
  redis.call('ZADD', KEYS[4], 0, name)
end

local function last_number(name) return tonumber(redis.call('HGET', KEYS[5], name) or '0') end

local function read_aliases(id)
  local aliases = {{}}
  for line in string.gmatch(redis.call('HGET', KEYS[9], id) or '', '[^\\n]+') do
    local name, revision, updated, target = string.match(line, '^(%S+) (%d+) (%S+) (%S+)$')
    table.insert(aliases, {{name = name, revision = tonumber(revision), updated = updated, target = target}})
  end
  return aliases
end

local function write_aliases(id, aliases)
  local lines = {{}}
  for _, a in ipairs(aliases) do
    table.insert(lines, string.format('%s %d %s %s', a.name, a.revision, a.updated, a.target))
  end
  local text = table.concat(lines, '\\n')
  redis.call('HSET', KEYS[9], id, text)
  return text
end

local function find_alias(aliases, name)
  for _, a in ipairs(aliases) do if a.name == name then return a end end
  return nil
end

local function revision_of(alias) if alias and alias.target ~= '0' then return alias.revision end return 0 end

local function versions_of(target)
  local numbers = {{}}
  for part in string.gmatch(string.gsub(target, '^%a+:', ''), '[^,]+') do
    table.insert(numbers, string.match(part, '^%d+'))
  end
  return numbers
end

local function point(aliases, name, target)
  local alias = find_alias(aliases, name)
  if not alias then
    alias = {{name = name, revision = 0}}
    table.insert(aliases, alias)
  end
  alias.revision, alias.updated, alias.target = alias.revision + 1, now, tostring(target)
end

local function emit(kind, name, id, version, alias)
  redis.call('XADD', KEYS[2], 'MAXLEN', '~', {MAX_EVENTS}, '*', 'epoch', tostring(epoch), 'kind', kind,
    'task', name, 'task_id', id, 'version', tostring(version), 'alias', alias, 'at', now)
end

local function commit() epoch = redis.call('INCR', KEYS[1]) end

-- ok  epoch  created  task line  alias lines  then for each version: number  body  state  card
local function version_reply(created, task, numbers, aliases)
  local reply = {{'ok', tostring(epoch), created, task.line, aliases}}
  for _, number in ipairs(numbers) do
    local field = task.id .. ':' .. number
    table.insert(reply, tostring(number))
    table.insert(reply, redis.call('HGET', KEYS[6], field))
    table.insert(reply, redis.call('HGET', KEYS[7], field))
    table.insert(reply, redis.call('HGET', KEYS[8], field) or '')
  end
  return reply
end
"""

PUBLISH = (
    _PRELUDE
    + """
-- One version, or several together with the ensemble that they are: all of it, or nothing.
-- ARGV   3 task name  4 publication  5 fencing token or ''  6 id for a task that must be created  7 labels (JSON)
--        8 spec (JSON) or '': the task must exist  9 state  10 alias or ''  11 expected revision or ''
--        12 mode of an ensemble  13... for each version: its key  body (JSON)  card (JSON lines)
-- reply  as version_reply; or fenced TOKEN, elsewhere, no_task, revision NUMBER
local name, publication, alias = ARGV[3], ARGV[4], ARGV[10]
if ARGV[5] ~= '' then
  local seen = tonumber(redis.call('HGET', KEYS[11], publication) or '0')
  if tonumber(ARGV[5]) < seen then return {'fenced', tostring(seen)} end
  redis.call('HSET', KEYS[11], publication, ARGV[5])
end
local task = read_task(name)
local numbers = {}
local known = redis.call('HGET', KEYS[10], publication)
while known do
  local id, number = string.match(known, '^(%x+):(%d+)$')
  if not task or task.id ~= id then return {'elsewhere'} end
  table.insert(numbers, number)
  known = redis.call('HGET', KEYS[10], publication .. '#' .. (#numbers + 1))
end
if #numbers > 0 then return version_reply('0', task, numbers, redis.call('HGET', KEYS[9], task.id) or '') end
if not task and ARGV[8] == '' then return {'no_task'} end
local aliases = task and read_aliases(task.id) or {}
if alias ~= '' and ARGV[11] ~= '' then
  local current = revision_of(find_alias(aliases, alias))
  if current ~= tonumber(ARGV[11]) then return {'revision', tostring(current)} end
end

commit()
if not task then
  task = {id = ARGV[6], base = tostring(last_number(name)), created = now, updated = now,
    labels = ARGV[7], spec = ARGV[8]}
  write_task(name, task)
  emit('task', name, task.id, '', '')
end
for i = 13, #ARGV, 3 do
  local number = redis.call('HINCRBY', KEYS[5], name, 1)
  local field = task.id .. ':' .. number
  redis.call('HSET', KEYS[6], field, ARGV[i + 1])
  redis.call('HSET', KEYS[7], field, ARGV[9])
  if ARGV[i + 2] ~= '' then redis.call('HSET', KEYS[8], field, ARGV[i + 2]) end
  redis.call('HSET', KEYS[10], ARGV[i], field)
  emit('version', name, task.id, number, '')
  table.insert(numbers, number)
end
if alias ~= '' then
  local target, only = table.concat(numbers, ','), ''
  if #numbers > 1 then target = ARGV[12] .. ':' .. target else only = target end
  point(aliases, alias, target)
  emit('alias', name, task.id, only, alias)
  if alias ~= 'prod' and numbers[1] == tonumber(task.base) + 1 then
    point(aliases, 'prod', target)
    emit('alias', name, task.id, only, 'prod')
  end
end
return version_reply('1', task, numbers, write_aliases(task.id, aliases))
"""
)

PUT_TASK = (
    _PRELUDE
    + """
-- ARGV   3 task name  4 id for a new task  5 labels (JSON)  6 spec (JSON)
-- reply  ok epoch task_line; or labels
local name = ARGV[3]
local task = read_task(name)
if task and task.spec == ARGV[6] then return {'ok', tostring(epoch), task.line} end
if task and task.labels ~= ARGV[5] and last_number(name) > tonumber(task.base) then return {'labels'} end
commit()
if not task then task = {id = ARGV[4], base = tostring(last_number(name)), created = now} end
task.updated, task.labels, task.spec = now, ARGV[5], ARGV[6]
write_task(name, task)
emit('task', name, task.id, '', '')
return {'ok', tostring(epoch), task.line}
"""
)

DELETE_TASK = (
    _PRELUDE
    + """
-- ARGV   3 task name
-- reply  ok epoch id last_number then publication number for each version; or no_task
local name = ARGV[3]
local task = read_task(name)
if not task then return {'no_task'} end
commit()
local reply = {'ok', tostring(epoch), task.id, tostring(last_number(name))}
for number = tonumber(task.base) + 1, last_number(name) do
  local field = task.id .. ':' .. number
  local body = redis.call('HGET', KEYS[6], field)
  if body then
    table.insert(reply, cjson.decode(body).publication)
    table.insert(reply, tostring(number))
  end
  for key = 6, 8 do redis.call('HDEL', KEYS[key], field) end
end
redis.call('HDEL', KEYS[9], task.id)
redis.call('HDEL', KEYS[3], name)
redis.call('ZREM', KEYS[4], name)
redis.call('HSET', KEYS[12], task.id, name .. ' ' .. last_number(name))
emit('task_deleted', name, task.id, '', '')
return reply
"""
)

SET_STATE = (
    _PRELUDE
    + """
-- ARGV   3 task name  4 number  5 state
-- reply  as version_reply; or no_task, no_version, in_use ALIAS
local task = read_task(ARGV[3])
if not task then return {'no_task'} end
local field = task.id .. ':' .. ARGV[4]
local state = redis.call('HGET', KEYS[7], field)
if not state then return {'no_version'} end
if state ~= ARGV[5] then
  if ARGV[5] == 'retired' then
    for _, a in ipairs(read_aliases(task.id)) do
      for _, number in ipairs(versions_of(a.target)) do
        if number == ARGV[4] then return {'in_use', a.name} end
      end
    end
  end
  commit()
  redis.call('HSET', KEYS[7], field, ARGV[5])
  emit('version_state', ARGV[3], task.id, ARGV[4], '')
end
return version_reply('0', task, {ARGV[4]}, '')
"""
)

APPEND_EVALUATION = (
    _PRELUDE
    + """
-- ARGV   3 task name  4 number  5 evaluation (JSON); one that is there already is not appended again
-- reply  as version_reply; or no_task, no_version
local task = read_task(ARGV[3])
if not task then return {'no_task'} end
local field = task.id .. ':' .. ARGV[4]
if redis.call('HEXISTS', KEYS[6], field) == 0 then return {'no_version'} end
local card = redis.call('HGET', KEYS[8], field) or ''
if not string.find('\\n' .. card .. '\\n', '\\n' .. ARGV[5] .. '\\n', 1, true) then
  commit()
  redis.call('HSET', KEYS[8], field, card == '' and ARGV[5] or card .. '\\n' .. ARGV[5])
  emit('version_state', ARGV[3], task.id, ARGV[4], '')
end
return version_reply('0', task, {ARGV[4]}, '')
"""
)

MOVE_ALIAS = (
    _PRELUDE
    + """
-- ARGV   3 task name  4 alias  5 target  6 expected revision, 0: must not exist, '': whatever it is
-- reply  ok epoch id alias_lines; or no_task, revision NUMBER, no_version PLACE, unfit PLACE STATE
--        PLACE: which of the target's versions, from 1
local task = read_task(ARGV[3])
if not task then return {'no_task'} end
local aliases = read_aliases(task.id)
local current = revision_of(find_alias(aliases, ARGV[4]))
if ARGV[6] ~= '' and current ~= tonumber(ARGV[6]) then return {'revision', tostring(current)} end
local numbers = versions_of(ARGV[5])
for place, number in ipairs(numbers) do
  local state = redis.call('HGET', KEYS[7], task.id .. ':' .. number)
  if not state then return {'no_version', tostring(place)} end
  if state == 'retired' or state == 'quarantined' then return {'unfit', tostring(place), state} end
end
commit()
point(aliases, ARGV[4], ARGV[5])
emit('alias', ARGV[3], task.id, #numbers == 1 and ARGV[5] or '', ARGV[4])
return {'ok', tostring(epoch), task.id, write_aliases(task.id, aliases)}
"""
)

DELETE_ALIAS = (
    _PRELUDE
    + """
-- ARGV   3 task name  4 alias  5 expected revision or ''
-- reply  ok epoch id alias_lines; or no_task, no_alias, revision NUMBER
local task = read_task(ARGV[3])
if not task then return {'no_task'} end
local aliases = read_aliases(task.id)
local alias = find_alias(aliases, ARGV[4])
if revision_of(alias) == 0 then return {'no_alias'} end
if ARGV[5] ~= '' and alias.revision ~= tonumber(ARGV[5]) then return {'revision', tostring(alias.revision)} end
commit()
alias.target, alias.updated = '0', now
emit('alias_deleted', ARGV[3], task.id, '', ARGV[4])
return {'ok', tostring(epoch), task.id, write_aliases(task.id, aliases)}
"""
)

RAISE_FENCE = (
    _PRELUDE
    + """
-- ARGV   3 publication  4 fencing token
-- reply  ok TOKEN: the highest seen
local seen = tonumber(redis.call('HGET', KEYS[11], ARGV[3]) or '0')
if tonumber(ARGV[4]) > seen then
  redis.call('HSET', KEYS[11], ARGV[3], ARGV[4])
  seen = tonumber(ARGV[4])
end
return {'ok', tostring(seen)}
"""
)
