-- Take a free slot, or a place in the line.
--
-- KEYS   see library.lua
-- ARGV   1 instance   2 session   3 lease (us)   4 prefix of the wake-up channels
--        5 member   6 the call site's limit, '' for none   7 'free' to be refused instead of waiting, or ''
--        8 refuse if this many wait, '' for no maximum   9 head start (us)   10 `<kept id> <place>`, or ''
--        11 'who' to get the holders, or ''
-- Reply  {0}                                                    another session is on record: sync first
--        {1, token, in use, depth, limit, resumed, previous, granted, reclaimed}       granted
--        {2, place, in use, depth, limit, resumed, previous, granted, reclaimed, position, look, holders}
--        {3 busy | 4 full, 0, in use, depth, limit, 0, previous, granted, reclaimed, holds, mean}
--        granted and reclaimed are missing on the fast path
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

local plain = ARGV[10] == '' and previous == ''

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
    local ttl = math.max(60, math.ceil(lease * 4 / 1000000))
    redis.call('EXPIRE', KEYS[3], ttl)
    redis.call('EXPIRE', KEYS[4], ttl)
  end
  return {1, number, holders + 1, 0, limit_text, 0, ''}
end

-- Fast path: all slots are taken and no lease has lapsed, so the call goes to the end of the line.
if plain and holders >= limit and wanted == named and ARGV[7] == '' and ARGV[8] == '' and ARGV[9] == '0'
  and ARGV[11] == '' and NOW >= window and waiters > 0 then
  local deadline = redis.call('ZRANGEBYSCORE', KEYS[5], '(0', '+inf', 'WITHSCORES', 'LIMIT', 0, 1)[2]
  if deadline and tonumber(deadline) > NOW then
    local number = math.max(last + 1, NOW)
    redis.call('ZADD', KEYS[2], number, ARGV[5])
    redis.call('ZADD', KEYS[4], 0, ARGV[5])
    redis.call('HSET', KEYS[1], 'last', number)
    local position, look = waiters + 1, tonumber(deadline) - NOW
    return {2, number, holders, position, limit_text, 0, '', {}, {}, position, look, {}}
  end
end

local instance, channel = ARGV[1], ARGV[4]
-- @include library

if wanted ~= named then
  redis.call('HSET', META, 'limit', wanted)
end
reap_lapsed()
grant('')
waiters = redis.call('ZCARD', WAITING)
holders = redis.call('ZCARD', HOLDING)

local free = waiters == 0 and holders < limit and NOW >= window
if not free and ARGV[7] == 'free' then
  return {3, 0, holders, waiters, limit_text, 0, previous, granted, reclaimed, 0, 0}
end
if not free and ARGV[8] ~= '' and waiters >= tonumber(ARGV[8]) then
  local holds = redis.call('HMGET', META, 'holds', 'mean')
  local count, mean = tonumber(holds[1] or 0), tonumber(holds[2] or 0)
  return {4, 0, holders, waiters, limit_text, 0, previous, granted, reclaimed, count, mean}
end
local kept = take_kept(ARGV[10], ARGV[5])
local resumed = kept and 1 or 0
local number = next_number()
redis.call('ZADD', TICKETS, 0, ARGV[5])
redis.call('HSET', META, 'last', number)
if holders == 0 and waiters == 0 then
  redis.call('EXPIRE', TICKETS, ttl())
end
if free then
  redis.call('ZADD', HOLDING, number, ARGV[5])
  if holders == 0 then
    redis.call('EXPIRE', HOLDING, ttl())
  end
  return {1, number, holders + 1, 0, limit_text, resumed, previous, granted, reclaimed}
end
local place = kept or number - tonumber(ARGV[9])
redis.call('ZADD', WAITING, place, ARGV[5])
if waiters == 0 then
  redis.call('EXPIRE', WAITING, ttl())
end
local position = redis.call('ZRANK', WAITING, ARGV[5]) + 1
local holding = ARGV[11] == 'who' and redis.call('ZRANGE', HOLDING, 0, 2) or {}
return {
  2, place, holders, waiters + 1, limit_text, resumed, previous, granted, reclaimed, position, look(), holding,
}
