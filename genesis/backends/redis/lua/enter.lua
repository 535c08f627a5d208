-- Take a free slot, or a place in the line.
--
-- KEYS, ARGV 1 to 4   see library.lua
-- ARGV   5 member   6 the call site's limit, '' for none   7 refuse if this many wait, '' for no maximum
--        8 `<kept id> <place>`, or ''
-- Reply  {0}                                       another session is on record: sync first
--        {row, depth, limit, previous limit if this call named another, or ''}
--        {row, depth, limit, previous, granted, reclaimed, look, holders: the first few, for a waiter with a
--         context}
--          row: see `admit` in library.lua
--
-- Races  A newcomer never overtakes: free slots are granted to the line first, in the same step. A late
--        command of a lost connection carries an old session, and the session of a reaped instance is
--        negative: Redis rejects both.

local time = redis.call('TIME')
local NOW = time[1] * 1000000 + time[2]
local meta = redis.call('HMGET', KEYS[1], ARGV[1], 'last', 'limit', 'override', 'until')
if meta[1] ~= ARGV[2] then
  return {0}
end
local waiters = redis.call('ZCARD', KEYS[2])
local holders = redis.call('ZCARD', KEYS[3])
local last = tonumber(meta[2] or 0)
local window = tonumber(meta[5] or 0)
local named, wanted, previous = meta[3] or '', ARGV[6], ''
local idle = waiters == 0 and holders == 0
if wanted == '' and not idle then
  wanted = named
elseif wanted ~= named and not idle then
  previous = named
end
local limit_text = meta[4] or wanted ~= '' and wanted or '1'
local limit = tonumber(limit_text)
local lease = tonumber(ARGV[3])

local plain = ARGV[8] == '' and previous == ''

if plain and waiters == 0 and holders < limit and NOW >= window then
  local number = math.max(last + 1, NOW)
  redis.call('ZADD', KEYS[3], number, ARGV[5])
  redis.call('ZADD', KEYS[4], 0, ARGV[5])
  if wanted == named then
    redis.call('HSET', KEYS[1], 'last', number)
  else
    redis.call('HSET', KEYS[1], 'last', number, 'limit', wanted)
  end
  if holders == 0 then
    local ttl = math.max(660, math.ceil(lease * 4 / 1000000))
    redis.call('EXPIRE', KEYS[3], ttl)
    redis.call('EXPIRE', KEYS[4], ttl)
  end
  return {{1, number, 0}, 0, limit_text, ''}
end

-- Fast path: all slots are taken and no lease has lapsed, so the call goes to the end of the line. It has no
-- head start and no context.
if plain and holders >= limit and wanted == named and ARGV[7] == '' and NOW >= window and waiters > 0
  and string.find(ARGV[5], '^%S+ 0  ') then
  local deadline = redis.call('ZRANGEBYSCORE', KEYS[5], '(0', '+inf', 'WITHSCORES', 'LIMIT', 0, 1)[2]
  if deadline and tonumber(deadline) > NOW then
    local number = math.max(last + 1, NOW)
    redis.call('ZADD', KEYS[2], number, ARGV[5])
    redis.call('ZADD', KEYS[4], 0, ARGV[5])
    redis.call('HSET', KEYS[1], 'last', number)
    local position = waiters + 1
    return {{2, number, 0, position}, position, limit_text, '', {}, {}, tonumber(deadline) - NOW, {}}
  end
end

local instance, channel = ARGV[1], ARGV[4]
-- @include library

if wanted ~= named then
  redis.call('HSET', META, 'limit', wanted)
end
reap_lapsed()
local row, depth = admit(ARGV[5], ARGV[7], ARGV[8])
if row[1] ~= 3 then
  redis.call('HSET', META, 'last', last)
end
local waits = row[1] == 2
return {
  row, depth, limit_text, previous, granted, reclaimed, waits and look() or -1,
  waits and string.find(ARGV[5], '^%S+ %d+ %S') and redis.call('ZRANGE', HOLDING, 0, 2) or {},
}
