-- The part that every script shares: put in front of each of them when it is loaded.
--
-- KEYS, the same four for every script, all under the queue's one {hash tag}
--   1 meta     hash  epoch      when this state was created (us): another epoch = data was lost
--                    last       the last number given; numbers are places in line and fencing tokens
--                    limit      the call sites' limit, the one that came last
--                    override   set_limit's limit, and override_at, when it was set or ended (us)
--                    until      end of the recovery window (us), see `recover`
--                    audited    when the books were last balanced (us), see heartbeat.lua
--   2 waiting  zset  ticket -> number, by which the line is ordered
--   3 holding  zset  ticket -> number, which is its fencing token
--   4 leases   zset  instance -> Redis time (us) at which its lease lapses
--   in a Cluster a fifth is declared that never exists, so that no script runs half way, see cluster.py
-- and three that are derived from KEYS[1], under the same tag
--   at:<instance>    hash  ticket -> "<context> <item_id>"; all that the instance has in this queue
--   gone             hash  ticket -> "reaped" | "evicted": for its owner, until it says leave
--   left:<ticket>    string, for a while: what still comes of it is a stray copy; the same for the
--                    name of each set_limit, and with ":evicted" for each eviction
--
-- Invariants after every script
--   a ticket in waiting or in holding is in exactly one of them, and in at:<its instance>
--   an instance with an at: hash has a lease, and the other way round, but for one that beat for
--   tickets that are unknown here: its lease stays until it registers them again, or lapses
--   no free slot and live waiter at the same time, but for the recovery window
--
-- Numbers are Redis microseconds, pushed up by one where they would repeat. So they grow strictly
-- across an idle queue and across a loss of data, waiters that register again keep their order
-- before all newcomers, and a waiter's age and a holder's age need no field of their own. No
-- instance's clock is read.
--
-- Every key expires some time after the last heartbeat or newcomer, so that nothing stays behind even
-- if all instances die at once; only a queue with an override keeps meta.

local META, WAITING, HOLDING, LEASES = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local BASE = string.sub(META, 1, -5)

local time = redis.call('TIME')
local NOW = time[1] * 1000000 + time[2]

local meta = redis.call('HMGET', META, 'epoch', 'last', 'limit', 'override', 'until')
local epoch = meta[1]
local last = tonumber(meta[2] or 0)
local limit = tonumber(meta[4] or meta[3] or 1) -- to compare with
local limit_text = meta[4] or meta[3] or '1' -- to tell: a Lua number ends at 2^53
local overridden = meta[4]
local window = tonumber(meta[5] or 0)

local granted, reclaimed = {}, {}

local function seconds_to_live(lease)
  return math.max(60, math.ceil(lease * 4 / 1000000))
end

local function text(number)
  return string.format('%.0f', number)
end

local function instance_of(ticket)
  return string.match(ticket, '^(.*):')
end

local function next_number()
  last = math.max(last + 1, NOW)
  return last
end

local function keep_meta(ttl)
  if overridden then
    redis.call('PERSIST', META)
  else
    redis.call('EXPIRE', META, ttl)
  end
end

-- Takes a ticket out, whichever state it is in. Race: a grant that was on its way to it does not
-- matter, because the slot is given back here, in the same step that finds the next head.
local function remove(ticket)
  local instance = instance_of(ticket)
  local mine = BASE .. 'at:' .. instance
  if redis.call('HDEL', mine, ticket) == 1 and redis.call('EXISTS', mine) == 0 then
    redis.call('ZREM', LEASES, instance)
  end
  if redis.call('ZREM', HOLDING, ticket) == 1 then
    return 'holding'
  elseif redis.call('ZREM', WAITING, ticket) == 1 then
    return 'waiting'
  end
  return false
end

-- Leaves word for the owner of a ticket that ended without it; the word expires.
local function leave_word(ticket, reason, ttl)
  redis.call('HSET', BASE .. 'gone', ticket, reason)
  redis.call('EXPIRE', BASE .. 'gone', ttl)
end

-- Takes back all that a dead instance left. Its holders get word, in case it was only paused: it
-- must then know that the slot is lost. Its waiters do not: they may register again, in their place.
local function reap(instance, ttl)
  local mine = BASE .. 'at:' .. instance
  local left = redis.call('HGETALL', mine)
  for i = 1, #left, 2 do
    local state = 'waiting'
    if redis.call('ZREM', WAITING, left[i]) == 0 then
      state = 'holding'
      redis.call('ZREM', HOLDING, left[i])
      leave_word(left[i], 'reaped', ttl)
    end
    reclaimed[#reclaimed + 1] = {state, left[i], left[i + 1]}
  end
  redis.call('DEL', mine)
  redis.call('ZREM', LEASES, instance)
end

local function reap_lapsed(ttl)
  for _, instance in ipairs(redis.call('ZRANGEBYSCORE', LEASES, '-inf', text(NOW))) do
    reap(instance, ttl)
  end
end

-- After a loss of data, holds all grants back for half a lease, so that every living instance has
-- registered again what it has before the first grant is made: that is what keeps the order and, from
-- then on, the limit. An instance that beat just before the loss beats again a third of the lease
-- later; the rest, a sixth, is for its two round trips and for a loop that lags. Begun once an epoch,
-- by the first who knew the old one.
local function recover(lease)
  if window == 0 then
    window = NOW + lease / 2
    redis.call('HSET', META, 'until', text(window))
  end
end

-- Grants free slots to the heads of the line and wakes each of them alone. Reads the head, adds it
-- to the holders and only then takes it off the line: should Redis refuse to write in between (out
-- of memory), nobody is lost. A head whose instance is dead is reaped instead of granted.
-- `origin` is "<ticket> <context> <item_id>" of whoever made room, or ''.
local function grant(channel, origin, ttl)
  local ticket = NOW >= window and redis.call('ZRANGE', WAITING, 0, 0)[1]
  local free = ticket and limit - redis.call('ZCARD', HOLDING) or 0
  while ticket and free > 0 do
    local instance = instance_of(ticket)
    local lapses = redis.call('ZSCORE', LEASES, instance)
    if lapses and tonumber(lapses) > NOW then
      local number = next_number()
      if redis.call('ZADD', HOLDING, text(number), ticket) == 1 and free == limit then
        redis.call('EXPIRE', HOLDING, ttl)
      end
      redis.call('ZREM', WAITING, ticket)
      redis.call('HSET', META, 'last', text(number))
      redis.call('PUBLISH', channel .. instance, 'granted ' .. ticket .. ' ' .. text(number) .. ' ' .. origin)
      granted[#granted + 1] = {ticket, text(number), redis.call('HGET', BASE .. 'at:' .. instance, ticket) or ' '}
      free = free - 1
    else
      reap(instance, ttl)
      redis.call('ZREM', WAITING, ticket)
      -- the reaped instance may have held slots as well
      free = limit - redis.call('ZCARD', HOLDING)
    end
    ticket = free > 0 and redis.call('ZRANGE', WAITING, 0, 0)[1]
  end
end

-- An idle queue forgets its limit; what is left of meta expires.
local function settle()
  if redis.call('EXISTS', WAITING, HOLDING) == 0 then
    redis.call('HDEL', META, 'limit')
  end
end
