"""The Lua scripts behind a job's record. Each is one atomic step; `records.py` wraps them.

All times come from the Redis clock, in milliseconds, so that workers' clocks do not matter. Fields of a job's hash:

    plan, data       JSON, written once               number          running number
    status           see job.py                       attempt         claims so far: the fencing token
    worker, beat     holder of the claim, last sign   cancel          "1" once a running job shall be cancelled
    committing       "1" once publishing has begun    checkpoint      steps covered by the newest checkpoint
    seen             `checkpoint` at the last loss    stalls          losses in a row without a newer checkpoint
    dispatched       when it was last put on RQ       created, started, updated, finished
    progress, metrics, error, result                  JSON
    hyperparameters                                   JSON: the numbers that "auto" stood for, once known
    trace                                             W3C traceparent of the submission, where it was traced
"""

from __future__ import annotations

_COMMON = """
local function now() local t = redis.call('TIME') return t[1] * 1000 + math.floor(t[2] / 1000) end
local function has(list, word) return string.find(',' .. list .. ',', ',' .. word .. ',', 1, true) ~= nil end
local function tell(stream, at, json)
  if json ~= '' then redis.call('XADD', stream, 'MAXLEN', '~', 2000, '*', 'at', at, 'event', json) end
end
local function finish(keys, id, at, status)
  local job, stream, live, ended = keys[1], keys[2], keys[3], keys[4]
  redis.call('HSET', job, 'status', status, 'finished', at, 'updated', at)
  redis.call('HDEL', job, 'worker')
  redis.call('SREM', live, id)
  redis.call('EXPIRE', stream, 2592000)
  redis.call('HINCRBY', ended, status, 1)
  local started = redis.call('HGET', job, 'started')
  if started then redis.call('HINCRBY', ended, 'ms', at - started) end
end
"""

CREATE = (
    _COMMON
    + """
-- KEYS[1] job  KEYS[2] events  KEYS[3] all jobs  KEYS[4] live jobs  KEYS[5] counter  KEYS[6] idempotency hash
-- ARGV[1] id  ARGV[2] plan  ARGV[3] data  ARGV[4] event  ARGV[5] body digest, '' without a key  ARGV[6] key's life, s
-- ARGV[7] traceparent, '' for none
-- returns {'created', id} | {'same', id} | {'conflict', id}
if ARGV[5] ~= '' then
  local known = redis.call('HMGET', KEYS[6], 'id', 'body')
  if known[1] then
    if known[1] == ARGV[1] then return {'created', ARGV[1]} end
    if known[2] == ARGV[5] then return {'same', known[1]} end
    return {'conflict', known[1]}
  end
  redis.call('HSET', KEYS[6], 'id', ARGV[1], 'body', ARGV[5])
  redis.call('EXPIRE', KEYS[6], ARGV[6])
end
if redis.call('EXISTS', KEYS[1]) == 1 then return {'created', ARGV[1]} end  -- the reply to the first try was lost
local at = now()
local number = redis.call('INCR', KEYS[5])
redis.call('HSET', KEYS[1], 'id', ARGV[1], 'plan', ARGV[2], 'data', ARGV[3], 'number', number, 'status', 'validating',
  'attempt', 0, 'checkpoint', -1, 'seen', -1, 'stalls', 0, 'created', at, 'updated', at, 'dispatched', at)
if ARGV[7] ~= '' then redis.call('HSET', KEYS[1], 'trace', ARGV[7]) end
redis.call('ZADD', KEYS[3], number, ARGV[1])
redis.call('SADD', KEYS[4], ARGV[1])
tell(KEYS[2], at, ARGV[4])
return {'created', ARGV[1]}
"""
)

MOVE = (
    _COMMON
    + """
-- One transition, by compare-and-set.
-- KEYS[1] job  KEYS[2] events  KEYS[3] live jobs  KEYS[4] counts of ended jobs
-- ARGV[1] id  ARGV[2] states it may be in  ARGV[3] attempt, '' for any  ARGV[4] next state  ARGV[5] event
-- ARGV[6] '1': refused if a cancel was asked for  ARGV[7] '1': the next state ends the job  ARGV[8...] field, value
-- returns 'moved' | 'missing' | 'fenced' | 'cancel' | the state it is in
local found = redis.call('HMGET', KEYS[1], 'status', 'attempt', 'cancel')
if not found[1] then return 'missing' end
if ARGV[3] ~= '' and found[2] ~= ARGV[3] then return 'fenced' end
if ARGV[3] ~= '' and found[1] == ARGV[4] then return 'moved' end  -- the reply to the first try was lost
if not has(ARGV[2], found[1]) then return found[1] end
if ARGV[6] == '1' and found[3] == '1' then return 'cancel' end
local at = now()
redis.call('HSET', KEYS[1], 'status', ARGV[4], 'updated', at)
for i = 8, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
if ARGV[4] == 'queued' then redis.call('HSET', KEYS[1], 'dispatched', at) redis.call('HDEL', KEYS[1], 'worker') end
if ARGV[4] == 'publishing' then redis.call('HSET', KEYS[1], 'committing', '1') end
if ARGV[7] == '1' then finish(KEYS, ARGV[1], at, ARGV[4]) end
tell(KEYS[2], at, ARGV[5])
return 'moved'
"""
)

CLAIM = (
    _COMMON
    + """
-- KEYS[1] job  KEYS[2] events  ARGV[1] worker  ARGV[2] event
-- returns the new attempt, or 0 if the job does not wait
local status = redis.call('HGET', KEYS[1], 'status')
if status ~= 'queued' and status ~= 'validating' then return 0 end
local at = now()
local attempt = redis.call('HINCRBY', KEYS[1], 'attempt', 1)
redis.call('HSET', KEYS[1], 'status', 'running', 'worker', ARGV[1], 'beat', at, 'updated', at)
redis.call('HSETNX', KEYS[1], 'started', at)
tell(KEYS[2], at, ARGV[2])
return attempt
"""
)

BEAT = (
    _COMMON
    + """
-- KEYS[1] job  ARGV[1] attempt
-- returns 'held' | 'cancel' | 'lost'
local found = redis.call('HMGET', KEYS[1], 'status', 'attempt', 'cancel')
if found[2] ~= ARGV[1] or not has('running,evaluating,publishing', found[1] or '') then return 'lost' end
redis.call('HSET', KEYS[1], 'beat', now())
if found[3] == '1' then return 'cancel' end
return 'held'
"""
)

REPORT = (
    _COMMON
    + """
-- What the trainer says while it works.
-- KEYS[1] job  KEYS[2] events  ARGV[1] attempt  ARGV[2] event  ARGV[3...] field, value
-- returns 'held' | 'cancel' | 'lost'
local found = redis.call('HMGET', KEYS[1], 'status', 'attempt', 'cancel')
if found[2] ~= ARGV[1] or not has('running,evaluating,publishing', found[1] or '') then return 'lost' end
local at = now()
redis.call('HSET', KEYS[1], 'updated', at)
for i = 3, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
tell(KEYS[2], at, ARGV[2])
if found[3] == '1' then return 'cancel' end
return 'held'
"""
)

CANCEL = (
    _COMMON
    + """
-- KEYS[1] job  KEYS[2] events  KEYS[3] live jobs  KEYS[4] counts of ended jobs
-- ARGV[1] id  ARGV[2] lease, ms  ARGV[3] event if ended now  ARGV[4] event if asked for
-- returns 'missing' | 'done' | 'asked' | 'publishing' | the state it had ended in before
local found = redis.call('HMGET', KEYS[1], 'status', 'committing', 'beat', 'cancel')
local status = found[1]
if not status then return 'missing' end
if has('succeeded,failed,cancelled', status) then return status end
if found[2] == '1' then return 'publishing' end
local at = now()
local silent = at - tonumber(found[3] or '0') > tonumber(ARGV[2])
if has('validating,queued', status) or silent then
  finish(KEYS, ARGV[1], at, 'cancelled')
  tell(KEYS[2], at, ARGV[3])
  return 'done'
end
if found[4] ~= '1' then
  redis.call('HSET', KEYS[1], 'cancel', '1', 'updated', at)
  tell(KEYS[2], at, ARGV[4])
end
return 'asked'
"""
)

TAKE_BACK = (
    _COMMON
    + """
-- A claim was lost: its lease is silent, or its holder says that the trainer died. The job goes back to the queue,
-- unless it was to be cancelled, or was lost too often in a row without a newer checkpoint.
-- KEYS[1] job  KEYS[2] events  KEYS[3] live jobs  KEYS[4] counts of ended jobs
-- ARGV[1] id  ARGV[2] attempt of the holder, '' for a reaper  ARGV[3] lease, ms  ARGV[4] losses at which to give up
-- ARGV[5] event requeued  ARGV[6] event cancelled
-- returns 'held' | 'queued' | 'cancelled' | 'exhausted'
local found = redis.call('HMGET', KEYS[1], 'status', 'attempt', 'beat', 'cancel', 'committing', 'checkpoint', 'seen')
if not has('running,evaluating,publishing', found[1] or '') then return 'held' end
local at = now()
if ARGV[2] == '' and at - tonumber(found[3]) <= tonumber(ARGV[3]) then return 'held' end
if ARGV[2] ~= '' and found[2] ~= ARGV[2] then return 'held' end
if found[4] == '1' and found[5] ~= '1' then
  finish(KEYS, ARGV[1], at, 'cancelled')
  tell(KEYS[2], at, ARGV[6])
  return 'cancelled'
end
if tonumber(found[6]) > tonumber(found[7]) then
  redis.call('HSET', KEYS[1], 'stalls', 0, 'seen', found[6])
elseif redis.call('HINCRBY', KEYS[1], 'stalls', 1) >= tonumber(ARGV[4]) then
  return 'exhausted'
end
redis.call('HSET', KEYS[1], 'status', 'queued', 'updated', at, 'dispatched', at)
redis.call('HDEL', KEYS[1], 'worker')
tell(KEYS[2], at, ARGV[5])
return 'queued'
"""
)

OVERDUE = (
    _COMMON
    + """
-- Whether a waiting job has been without a place in the queue for a lease's time. Stamps it, so that one caller acts.
-- KEYS[1] job  ARGV[1] lease, ms
local found = redis.call('HMGET', KEYS[1], 'status', 'dispatched')
if found[1] ~= 'queued' and found[1] ~= 'validating' then return 0 end
local at = now()
if at - tonumber(found[2]) <= tonumber(ARGV[1]) then return 0 end
redis.call('HSET', KEYS[1], 'dispatched', at)
return 1
"""
)
