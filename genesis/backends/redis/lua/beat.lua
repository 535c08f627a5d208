-- The heartbeat: renew the lease, and return what Redis knows of this instance.
--
-- KEYS   see library.lua
-- ARGV   1 instance   2 session   3 lease (us)   4 prefix of the wake-up channels
-- Reply  {0}   another session is on record: sync first
--        {1, now, look, tickets of this instance, slots it holds or -1 if there are too many holders to
--         count, sum of its tokens modulo 2^32, numbers (see library.lua), override or '', its version,
--         granted, reclaimed}
--
-- Races  Replies and wake-ups come in one order on one connection. When the instance reads this reply, it
--        has read every grant made before this script ran, and can compare the two views. The lease is
--        renewed before lapsed leases are reaped, so no instance reaps itself.

local time = redis.call('TIME')
local NOW = time[1] * 1000000 + time[2]
local meta = redis.call('HMGET', KEYS[1], ARGV[1], 'last', 'limit', 'override', 'until', 'version')
if meta[1] ~= ARGV[2] then
  return {0}
end
local last = tonumber(meta[2] or 0)
local limit = tonumber(meta[4] or meta[3] and meta[3] ~= '' and meta[3] or 1)
local window = tonumber(meta[5] or 0)
local instance, lease, channel = ARGV[1], tonumber(ARGV[3]), ARGV[4]
-- @include library

-- EXPIRE before ZADD: when out of memory, Redis rejects a command that uses memory only if it is the first
-- write of a script. A lease must be renewed even then.
keep_meta()
keep_line()
redis.call('ZADD', LEASES, NOW + lease, instance)
redis.call('ZREMRANGEBYSCORE', PAST, 86400 * 1000000 - NOW, NOW)
for _, owner in ipairs(redis.call('ZRANGEBYSCORE', LEASES, '(' .. -NOW, '(0', 'LIMIT', 0, 5)) do
  redis.call('HDEL', META, owner, owner .. ':r')
  redis.call('ZREM', LEASES, owner)
end
reap_lapsed()
grant('')

local first, final = range_of(instance)
local count = redis.call('ZLEXCOUNT', TICKETS, first, final)
local held, sum = -1, 0
if redis.call('ZCARD', HOLDING) <= PORTION then
  held = 0
  local rows = redis.call('ZRANGE', HOLDING, 0, -1, 'WITHSCORES')
  for i = 1, #rows, 2 do
    if owner_of(rows[i]) == instance then
      held = held + 1
      sum = sum + tonumber(rows[i + 1]) % 4294967296
    end
  end
end
return {
  1, NOW, look(), count, held, string.format('%.0f', sum), numbers(), meta[4] or '', meta[6] or '0', granted,
  reclaimed,
}
