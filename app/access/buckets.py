"""Token buckets: what may be spent in a minute, refilled evenly. One arithmetic, in a script and in a process.

A bucket holds a minute's worth. A request takes one from its bucket before it runs. Its tokens are known only after:
they are taken then, and may leave a debt that the next request waits for. So an allowance can be overdrawn by what runs
at one time, and is then made up for.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

MINUTE_S = 60.0
CAPACITY = 10_000  # keys whose buckets a process remembers

# KEYS: 1 bucket.  ARGV: 1 requests a minute  2 tokens a minute (0: no limit)  3 tokens to take; '' to ask for a request
# The clock is Redis's own, so replicas need not agree on theirs. Reply: milliseconds to wait, 0 when it may go on.
SPEND = """
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1e6
local most_r, most_t = tonumber(ARGV[1]), tonumber(ARGV[2])
local found = redis.call('HMGET', KEYS[1], 'requests', 'tokens', 'at')
local at = tonumber(found[3] or now)
local past = math.max(0, now - at) / 60
local requests = math.min(most_r, tonumber(found[1] or most_r) + past * most_r)
local tokens = math.min(most_t, tonumber(found[2] or most_t) + past * most_t)
local wait = 0
if ARGV[3] ~= '' then
  tokens = tokens - tonumber(ARGV[3])
else
  if most_r > 0 and requests < 1 then wait = (1 - requests) * 60 / most_r end
  if most_t > 0 and tokens < 1 then wait = math.max(wait, (1 - tokens) * 60 / most_t) end
  if wait == 0 then requests = requests - 1 end
end
redis.call('HSET', KEYS[1], 'requests', string.format('%.6f', requests), 'tokens', string.format('%.6f', tokens),
  'at', string.format('%.6f', now))
local full = 60
if most_t > 0 then full = math.max(full, (most_t - tokens) * 60 / most_t) end
redis.call('EXPIRE', KEYS[1], math.ceil(full) + 60)
return math.ceil(wait * 1000)
"""


@dataclass
class _Bucket:
    requests: float
    tokens: float
    at: float


class LocalBuckets:
    """The same arithmetic for one process; keys not seen for long are forgotten, as if their buckets were full."""

    def __init__(self) -> None:
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def spend(self, key_id: str, most_r: int, most_t: int, tokens: int | None, now: float) -> float:
        """Take a request, or `tokens` after the fact. Returns seconds to wait, 0 when it may go on."""
        bucket = self._refilled(key_id, most_r, most_t, now)
        if tokens is not None:
            bucket.tokens -= tokens
            return 0.0
        wait = 0.0
        if most_r and bucket.requests < 1:
            wait = (1 - bucket.requests) * MINUTE_S / most_r
        if most_t and bucket.tokens < 1:
            wait = max(wait, (1 - bucket.tokens) * MINUTE_S / most_t)
        if not wait:
            bucket.requests -= 1
        return wait

    def _refilled(self, key_id: str, most_r: int, most_t: int, now: float) -> _Bucket:
        bucket = self._buckets.setdefault(key_id, _Bucket(most_r, most_t, now))
        self._buckets.move_to_end(key_id)
        if len(self._buckets) > CAPACITY:
            self._buckets.popitem(last=False)
        past = max(0.0, now - bucket.at) / MINUTE_S
        bucket.requests = min(most_r, bucket.requests + past * most_r)
        bucket.tokens = min(most_t, bucket.tokens + past * most_t)
        bucket.at = now
        return bucket
