-- Shared by the scripts. The line `-- @include library` of a script is replaced by this text. It stands
-- below the script's fast path, so that a call on the fast path does not pay for these definitions.
--
-- KEYS, the same for every script, all under the queue's {hash tag}
--   1 meta      hash    last        the greatest number assigned so far
--                       limit       the call sites' limit; ignored when the queue is empty
--                       override, version   a copy of key 7
--                       until       no grants before this time: the recovery window
--                       opened      when that window opened
--                       holds, mean the number of holds in the mean, at most 100; their mean (us)
--                       <instance>  the instance's session; negative after it was reaped
--                       <instance>:r  the session in which it was last reaped
--   2 waiting   zset    place -> member
--   3 holding   zset    fencing token -> member
--   4 tickets   zset    0 -> member: all waiters and holders; those of one instance form a range (BYLEX)
--   5 leases    zset    lease deadline -> instance; after reaping, minus the expiry of its record
--   6 past      zset    expiry -> `t <ticket>` evicted, `k <kept id> <place>` kept, `u <kept id>` used
--                       for a ticket that took a kept place: the place's expiry -> `r <ticket>`; minus its
--                       time of entering -> `e <ticket>`, for a day
--   7 override  string  `<version> <limit>`, without an expiry while there is an override
--   8           never exists; declared in a Cluster, see cluster.py
--
-- ARGV of every script: 1 instance of the caller, '' for none   2 its session, '' for a script that needs
-- none   3 its lease (us)   4 prefix of the wake-up channels
--
-- A member is `<instance>:<serial> <head start (us)> <context> <item_id>`; the part before the first space
-- is the ticket. Serials have a fixed width, so members sort in the order of entering.
--
-- All times and numbers are microseconds of Redis's clock, incremented where they would repeat. Therefore
-- fencing tokens grow even after a queue was idle or its data was lost, waiters that re-register get
-- their old places, and no instance's clock is needed.
--
-- Invariants after every script that grants, and after the last page of a sync
--   a ticket is in exactly one of waiting and holding, and in tickets; or in none of the three
--   an instance with tickets has a session and a lease, unless its reaping is incomplete
--   there is no free slot while a call waits, except in the recovery window or if the reply's `look` is 0
--
-- Uses the script's locals NOW, last, limit, window, instance, lease and channel.

local META, WAITING, HOLDING, TICKETS, LEASES, PAST = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local PORTION = 500 -- the maximum number of tickets that one script call handles
local RECORD = 600 * 1000000 -- us; the lifetime of a reaped instance's record and of a tombstone

local granted, reclaimed = {}, {}
local pushed = 0 -- how many of `granted`; a sync grants several times
local more = false -- work is left: the caller should send the next command at once

local function ttl()
  return math.max(660, math.ceil(lease * 4 / 1000000)) -- the lease of another instance might be longer
end

local function keep_meta()
  redis.call('EXPIRE', META, RECORD / 1000000 + ttl())
  redis.call('EXPIRE', LEASES, RECORD / 1000000 + ttl())
end

local function keep_line()
  redis.call('EXPIRE', WAITING, ttl())
  redis.call('EXPIRE', HOLDING, ttl())
  redis.call('EXPIRE', TICKETS, ttl())
end

local function next_number()
  last = math.max(last + 1, NOW)
  return last
end

local function ticket_of(member)
  return string.match(member, '^%S+')
end

local function owner_of(member)
  return string.match(member, '^[^:]+')
end

local function head_start_of(member)
  return tonumber(string.match(member, '^%S+ (%d+)'))
end

local function session_of(owner)
  return tonumber(redis.call('HGET', META, owner) or 0)
end

local function range_of(owner)
  return '[' .. owner .. ':', '(' .. owner .. ';'
end

-- Sends a message to one instance. Call it last, and it uses pcall: if the user lacks the permission to
-- publish, the script still completes, and the heartbeat repairs the lost message. Never call it for the
-- caller: the reply has the same information.
local function push(owner, kind, member, rest)
  local text = kind .. ' ' .. math.abs(session_of(owner)) .. ' ' .. ticket_of(member) .. rest
  redis.pcall('PUBLISH', channel .. owner, text)
end

-- Removes a ticket. Returns 1 if it was holding, 2 if it was waiting, 3 if it was not in the queue.
local function remove(member)
  redis.call('ZREM', TICKETS, member)
  if redis.call('ZREM', HOLDING, member) == 1 then
    return 1
  end
  return redis.call('ZREM', WAITING, member) == 1 and 2 or 3
end

-- Records an override, '' for none. The version of an ended one is kept for a while, so that a sync does not
-- restore it.
local function set_override(number, text)
  redis.call('SET', KEYS[7], string.format('%.0f', number) .. ' ' .. text)
  redis.call('HSET', META, 'version', number)
  if text == '' then
    redis.call('EXPIRE', KEYS[7], RECORD / 1000000)
    redis.call('HDEL', META, 'override')
  else
    redis.call('HSET', META, 'override', text)
  end
end

-- Marks an instance as reaped and removes its tickets, within the portion of this call. The record stays:
-- late commands must be rejected, and the instance must learn that it was reaped.
local function reap(owner)
  local session = session_of(owner)
  if session > 0 then
    redis.call('HSET', META, owner, -session, owner .. ':r', session)
  end
  local first, final = range_of(owner)
  local room = math.max(0, PORTION - #reclaimed)
  local mine = redis.call('ZRANGEBYLEX', TICKETS, first, final, 'LIMIT', 0, room)
  for _, member in ipairs(mine) do
    reclaimed[#reclaimed + 1] = {remove(member) == 1 and 'holding' or 'waiting', member}
  end
  if #mine == room then
    more = true
  elseif session ~= 0 then
    redis.call('ZADD', LEASES, -(NOW + RECORD), owner)
  else
    redis.call('ZREM', LEASES, owner)
  end
end

-- Reaps the instances whose lease has lapsed, except the caller. If this is a late command of a dead instance, it
-- would be reaped and then add a ticket that nobody removes.
local function reap_lapsed()
  local lapsed = redis.call('ZRANGEBYSCORE', LEASES, '(0', NOW, 'LIMIT', 0, 10)
  for _, owner in ipairs(lapsed) do
    if #reclaimed >= PORTION then
      more = true
      break
    end
    if owner ~= instance then
      reap(owner)
    end
  end
  more = more or #lapsed == 10
end

-- Opens the recovery window: no grants for half a lease after a loss of data was detected. By then every
-- live instance has listed its tickets. An instance that does so later, but within a lease, does not
-- reopen the window.
local function open_window()
  if NOW >= window + lease / 2 then
    window = NOW + lease / 2
    redis.call('HSET', META, 'until', window, 'opened', NOW)
  end
end

-- Removes what has expired, in portions. Syncs do it too: an instance that lives for a short time sends no heartbeat.
local function prune()
  local old = redis.call('ZRANGEBYSCORE', PAST, 86400 * 1000000 - NOW, NOW, 'LIMIT', 0, PORTION)
  if #old > 0 then
    redis.call('ZREM', PAST, unpack(old))
  end
  more = more or #old == PORTION
  for _, owner in ipairs(redis.call('ZRANGEBYSCORE', LEASES, '(' .. -NOW, '(0', 'LIMIT', 0, 10)) do
    redis.call('HDEL', META, owner, owner .. ':r')
    redis.call('ZREM', LEASES, owner)
  end
end

-- Grants free slots to the heads of the line, at most a portion, and notifies their instances. If the
-- head's instance is dead, that instance is reaped instead. The caller counts as alive, because it just
-- sent a command of its session. `origin` is the call that freed the first slot, '' for none; the reaped
-- holders freed the next ones.
local function grant(origin)
  if NOW < window and NOW < tonumber(redis.call('HGET', META, 'opened') or 0) then
    window = 0 -- Redis's clock stepped back: open it again, or it ends later by that step
    open_window()
  end
  if NOW < window then
    return
  end
  local free = limit - redis.call('ZCARD', HOLDING)
  local new = free == limit -- the key of the holders does not exist
  while free > 0 do
    if #granted + #reclaimed >= PORTION then
      more = true
      break
    end
    local head = redis.call('ZRANGE', WAITING, 0, 0)[1]
    if not head then
      break
    end
    local owner = owner_of(head)
    local deadline = owner == instance or redis.call('ZSCORE', LEASES, owner)
    if deadline == true or deadline and tonumber(deadline) > NOW then
      local number = next_number()
      redis.call('ZADD', HOLDING, number, head)
      redis.call('ZREM', WAITING, head)
      granted[#granted + 1] = {head, number}
      free = free - 1
    else
      reap(owner)
      if remove(head) == 2 then -- the portion did not reach this ticket
        reclaimed[#reclaimed + 1] = {'waiting', head}
      end
      free = limit - redis.call('ZCARD', HOLDING)
      new = new or free == limit
    end
  end
  if #granted > pushed then
    redis.call('HSET', META, 'last', last)
    if new then
      redis.call('EXPIRE', HOLDING, ttl())
    end
    local freed = {origin ~= '' and origin or nil}
    for _, row in ipairs(reclaimed) do
      freed[#freed + 1] = row[1] == 'holding' and row[2] or nil
    end
    for i = pushed + 1, #granted do
      local row = granted[i]
      local owner = owner_of(row[1])
      if owner ~= instance then
        push(owner, 'g', row[1], ' ' .. string.format('%.0f', row[2]) .. ' ' .. (freed[i] or ''))
      end
    end
    pushed = #granted
  end
end

-- Microseconds until the caller should send its next command: the next lease deadline, or the end of the window.
local function look()
  if more then
    return 0
  end
  local first = redis.call('ZRANGEBYSCORE', LEASES, '(0', '+inf', 'WITHSCORES', 'LIMIT', 0, 1)[2]
  local due = first and tonumber(first) or NOW + lease
  if NOW < window then
    due = math.min(due, window)
  end
  return math.max(0, due - NOW)
end

-- Takes a kept place for a ticket. Returns its number, or nil if the place is no longer kept. The ticket's
-- time of entering is recorded separately, because the place is older.
local function take_kept(kept, member)
  local name = 'k ' .. kept
  local expiry = kept ~= '' and redis.call('ZSCORE', PAST, name)
  if not expiry or tonumber(expiry) <= NOW then
    return nil
  end
  -- ZADD before ZREM, because a key that becomes empty loses its expiry. The `u` record outlives the place:
  -- the instance that kept it might not have read Redis's reply, and might list it in a sync again.
  redis.call('ZADD', PAST, math.max(expiry, NOW + RECORD), 'u ' .. string.match(kept, '^%S+'))
  redis.call('ZREM', PAST, name)
  redis.call('ZADD', PAST, expiry, 'r ' .. ticket_of(member), -NOW, 'e ' .. ticket_of(member))
  return tonumber(string.match(kept, ' (.+)$'))
end

-- Lets a newcomer take a free slot, or a place in the line. Returns {1, token, 1 if it took its kept place},
-- {2, place, 1 if it took its kept place, position}, or {3, 0, holds in the mean, their mean} if `most` wait;
-- and the number of waiters.
local function admit(member, most, kept)
  grant('') -- a newcomer never overtakes
  local waiters, holders = redis.call('ZCARD', WAITING), redis.call('ZCARD', HOLDING)
  local free = waiters == 0 and holders < limit and NOW >= window
  if not free and most ~= '' and waiters >= tonumber(most) then
    local holds = redis.call('HMGET', META, 'holds', 'mean')
    return {3, 0, tonumber(holds[1] or 0), tonumber(holds[2] or 0)}, waiters
  end
  local number = next_number()
  local place = take_kept(kept, member)
  local row = {1, number, place and 1 or 0}
  redis.call('ZADD', TICKETS, 0, member)
  if waiters == 0 and holders == 0 then
    redis.call('EXPIRE', TICKETS, ttl())
  end
  if free then
    redis.call('ZADD', HOLDING, number, member)
    if holders == 0 then
      redis.call('EXPIRE', HOLDING, ttl())
    end
    return row, 0
  end
  row[1], row[2] = 2, place or number - head_start_of(member)
  redis.call('ZADD', WAITING, row[2], member)
  if waiters == 0 then
    redis.call('EXPIRE', WAITING, ttl())
  end
  row[4] = redis.call('ZRANK', WAITING, member) + 1
  return row, waiters + 1
end

-- Gives a kept place back if the call that took it left before it read the reply. Its token stays valid.
local function give_back(kept, member)
  local taken = 'r ' .. ticket_of(member)
  local expiry = redis.call('ZSCORE', PAST, taken)
  if expiry then
    redis.call('ZADD', PAST, expiry, 'k ' .. kept)
    redis.call('ZREM', PAST, taken, 'u ' .. string.match(kept, '^%S+'))
  end
end

-- When a waiter entered (us). The time is recorded for those that took a kept place, because it is older.
local any_resumed = nil
local function entered_at(member, place)
  if any_resumed == nil then
    any_resumed = #redis.call('ZRANGEBYSCORE', PAST, '-inf', '(0', 'LIMIT', 0, 1) > 0
  end
  local resumed = any_resumed and redis.call('ZSCORE', PAST, 'e ' .. ticket_of(member))
  return resumed and -tonumber(resumed) or place + head_start_of(member)
end

-- The longest wait in microseconds. Tickets behind the first one whose place is its time of entering entered later.
local function oldest_wait()
  local first = NOW
  local rows = redis.call('ZRANGE', WAITING, 0, 99, 'WITHSCORES')
  for i = 1, #rows, 2 do
    local place = tonumber(rows[i + 1])
    local entered = entered_at(rows[i], place)
    first = math.min(first, entered)
    if entered == place then
      break
    end
  end
  return NOW - first
end

-- {waiting, in use, limit, longest wait (us), longest hold (us), holds in the mean, mean hold (us)}
local function numbers()
  local oldest = redis.call('ZRANGE', HOLDING, 0, 0, 'WITHSCORES')[2]
  local holds = redis.call('HMGET', META, 'holds', 'mean')
  return {
    redis.call('ZCARD', WAITING), redis.call('ZCARD', HOLDING), string.format('%.0f', limit), oldest_wait(),
    oldest and math.max(0, NOW - tonumber(oldest)) or 0, tonumber(holds[1] or 0), tonumber(holds[2] or 0),
  }
end
