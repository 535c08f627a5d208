-- Give back a ticket's place or slot, and grant free slots to the heads of the line.
--
-- KEYS, ARGV 1 to 4   see library.lua
-- ARGV   5 member   6 its fencing token, '' if the instance knows none
--        7 the member with the context of the hold, for the call that gets its slot
--        8 us for which the place of a waiter is kept, '' for none   9 its place
--        or 8 'back' if the call left before it read a reply   9 the `<kept id> <place>` it asked for
-- Reply  {0}                                   another session is on record: sync first
--        {1 | 2 | 3}                           it was holding | waiting | not in the queue
--        {1 | 2 | 3, granted, reclaimed, look}
--
-- Races  A waiter times out or is cancelled while it is granted: it leaves in either state, and a slot that
--        it has just got goes to the next head in this step. A late copy from a lost connection is rejected
--        by its session; the sync that follows does not list the ticket.

local time = redis.call('TIME')
local NOW = time[1] * 1000000 + time[2]
local meta = redis.call('HMGET', KEYS[1], ARGV[1], 'last', 'limit', 'override', 'until', 'holds', 'mean')
if meta[1] ~= ARGV[2] then
  return {0}
end
local was, origin = 3, '' -- the call that frees a slot: a waiter that leaves frees none
local holds, mean = meta[6], meta[7]
if redis.call('ZREM', KEYS[3], ARGV[5]) == 1 then
  was, origin = 1, ARGV[7]
  if ARGV[6] ~= '' then
    holds = math.min(tonumber(holds or 0) + 1, 100)
    mean = tonumber(mean or 0)
    mean = math.floor(mean + (math.max(0, NOW - tonumber(ARGV[6])) - mean) / holds + 0.5)
  end
elseif redis.call('ZREM', KEYS[2], ARGV[5]) == 1 then
  was = 2
end
redis.call('ZREM', KEYS[4], ARGV[5])
local back = ARGV[8] == 'back'
if ARGV[8] ~= '' and not back and was ~= 3 then
  local kept = string.match(ARGV[5], '^%S+') .. ' ' .. ARGV[9]
  redis.call('ZADD', KEYS[6], NOW + tonumber(ARGV[8]), 'k ' .. kept)
  redis.call('EXPIRE', KEYS[6], 86400 + 660)
end
local waiters = redis.call('ZCARD', KEYS[2])
local holders = redis.call('ZCARD', KEYS[3])
local last = tonumber(meta[2] or 0)
local limit = tonumber(meta[4] or meta[3] and meta[3] ~= '' and meta[3] or 1)
local window = tonumber(meta[5] or 0)

-- Fast path: exactly one slot is free, and the instance of the head is alive.
if waiters > 0 and not back and holders == limit - 1 and NOW >= window then
  local head = redis.call('ZRANGE', KEYS[2], 0, 0)[1]
  local owner = string.match(head, '^[^:]+')
  local deadline = owner == ARGV[1] and NOW + 1 or tonumber(redis.call('ZSCORE', KEYS[5], owner) or 0)
  if deadline > NOW then
    local number = math.max(last + 1, NOW)
    redis.call('ZADD', KEYS[3], number, head)
    redis.call('ZREM', KEYS[2], head)
    redis.call('HSET', KEYS[1], 'last', number, 'holds', holds or 0, 'mean', mean or 0)
    if holders == 0 then
      redis.call('EXPIRE', KEYS[3], math.max(660, math.ceil(tonumber(ARGV[3]) * 4 / 1000000)))
    end
    if owner ~= ARGV[1] then -- by pcall and last, see `push` in library.lua
      local session = redis.call('HGET', KEYS[1], owner) or '0'
      local text = string.format('g %s %s %.0f ', session, string.match(head, '^%S+'), number) .. origin
      redis.pcall('PUBLISH', ARGV[4] .. owner, text)
    end
    return {was, {{head, number}}, {}, -1}
  end
end

if was == 1 and ARGV[6] ~= '' then
  redis.call('HSET', KEYS[1], 'holds', holds, 'mean', mean)
end
if waiters == 0 and not back then
  return {was}
end

local instance, lease, channel = ARGV[1], tonumber(ARGV[3]), ARGV[4]
-- @include library

if back and was ~= 3 then
  give_back(ARGV[9], ARGV[5])
end
grant(origin)
return {was, granted, reclaimed, more and 0 or -1}
