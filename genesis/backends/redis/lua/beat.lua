-- The heartbeat: renew the lease, and return what Redis knows of this instance.
--
-- KEYS, ARGV 1 to 4   see library.lua
-- Reply  {0}   another session is on record: sync first
--        {1, now, override or '', its version, numbers (see library.lua), tickets of this instance, slots it
--         holds or -1 if there are too many holders to count, sum of its tokens modulo 2^32, granted,
--         reclaimed, look}
--
-- Races  Replies and wake-ups come in one order on one connection. When the instance reads this reply, it
--        has read every grant made before this script ran, and can compare the two views. The lease is
--        renewed before lapsed leases are reaped, so no instance reaps itself.

-- @include preface
if meta[6] ~= ARGV[2] then
  return {0}
end

-- EXPIRE before ZADD: when out of memory, Redis rejects a command that uses memory only if it is the first
-- write of a script. A lease must be renewed even then.
keep_line()
redis.call('ZADD', LEASES, NOW + lease, instance)
keep_meta()
prune()
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
  1, NOW, override or '', string.format('%.0f', version), numbers(), count, held, string.format('%.0f', sum),
  granted, reclaimed, look(),
}
