-- An instance is alive and says what it believes it has in this queue; it is told where it is wrong.
--
-- KEYS   see line.lua
-- ARGV   1 instance   2 the epoch it knows, '' for none   3 lease (us)   4 prefix of the wake-up channels
--        5 how many tickets it has in all, on the last page; '' on the pages before
--        6 how many of the following are waiting; the rest hold
--        7.. tickets
-- Reply  {epoch or '', us until the instance should look again,
--        {waiting, in use, limit, us for which the head has waited, override or '', override_at or ''},
--        {{ticket, number}, ...}     believed waiting, but granted: the message was lost
--        {{ticket, reason}, ...}     ended without it: evicted, or reaped while it was paused
--        {ticket, ...}               unknown here: data was lost, or a stopped instance's waiter was reaped
--        {ticket, ...}               all that it has here, if it counts otherwise; else empty
--        granted, reclaimed}
--
-- Races  The word about an ended ticket stays until its owner says leave, so that a lost reply does not
--        lose it. The lease is renewed before lapsed ones are reaped, so that no instance reaps itself. What
--        an instance sends on its one connection arrives in order: a ticket whose enter or leave is
--        on its way is in the same state on both sides when this runs.

local instance, known, lease, channel = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
local total, waiters = ARGV[5], tonumber(ARGV[6])
local ttl = seconds_to_live(lease)
local interval = lease / 3
local mine = BASE .. 'at:' .. instance
local missed, ended, unknown, surplus = {}, {}, {}, {}

if #ARGV > 6 then
  if not epoch then
    epoch = text(NOW)
    redis.call('HSET', META, 'epoch', epoch)
  end
  if known ~= '' and known ~= epoch then
    recover(lease)
  end
  -- EXPIRE before ZADD: out of memory, Redis refuses a command that grows only as the first write of
  -- a script, and a lease must be renewed even then.
  for _, key in ipairs({LEASES, WAITING, HOLDING, mine}) do
    redis.call('EXPIRE', key, ttl)
  end
  keep_meta(ttl)
  redis.call('ZADD', LEASES, text(NOW + lease), instance)
  redis.call('EXPIRE', LEASES, ttl)
end

-- Compares one state of the page with its set, in one call.
local function compare(first, final, set)
  if final < first then
    return
  end
  local scores = redis.call('ZMSCORE', set, unpack(ARGV, first, final))
  -- If the instance's own book is short, Redis has dropped it: those are unknown as well.
  local short = redis.call('HLEN', mine) < #ARGV - 6
  for i = first, final do
    local ticket = ARGV[i]
    local number = set == WAITING and not scores[i - first + 1] and redis.call('ZSCORE', HOLDING, ticket)
    if number then
      missed[#missed + 1] = {ticket, text(tonumber(number))}
    elseif not scores[i - first + 1] then
      local reason = redis.call('HGET', BASE .. 'gone', ticket)
      if reason and not (set == WAITING and reason == 'reaped') then
        ended[#ended + 1] = {ticket, reason}
      else
        unknown[#unknown + 1] = ticket
      end
    elseif short and redis.call('HEXISTS', mine, ticket) == 0 then
      unknown[#unknown + 1] = ticket
    end
  end
end

compare(7, 6 + waiters, WAITING)
compare(7 + waiters, #ARGV, HOLDING)

if total ~= '' then
  if redis.call('HLEN', mine) ~= tonumber(total) - #unknown - #ended then
    surplus = redis.call('HKEYS', mine)
  end
  if redis.call('EXISTS', mine) == 0 and #unknown == 0 then
    redis.call('ZREM', LEASES, instance)
  end
end

reap_lapsed(ttl)

-- Balances the books, once an interval for the whole queue: what the instances have must be what
-- waits and holds. It can differ only if Redis dropped single keys (a maxmemory policy that evicts);
-- a ticket that no instance answers for would then keep its slot for good.
local audited = tonumber(redis.call('HGET', META, 'audited') or 0)
if epoch and #unknown == 0 and NOW - audited >= interval and NOW >= window then
  redis.call('HSET', META, 'audited', text(NOW))
  local theirs = 0
  for _, other in ipairs(redis.call('ZRANGE', LEASES, 0, -1)) do
    theirs = theirs + redis.call('HLEN', BASE .. 'at:' .. other)
  end
  if theirs ~= redis.call('ZCARD', WAITING) + redis.call('ZCARD', HOLDING) then
    for _, key in ipairs({WAITING, HOLDING}) do
      for _, ticket in ipairs(redis.call('ZRANGE', key, 0, -1)) do
        if redis.call('HEXISTS', BASE .. 'at:' .. instance_of(ticket), ticket) == 0 then
          redis.call('ZREM', key, ticket)
          reclaimed[#reclaimed + 1] = {key == WAITING and 'waiting' or 'holding', ticket, ' '}
        end
      end
    end
  end
end

-- A holder that is unknown here still holds: its slot is not free, and restore.lua comes next.
if #unknown == 0 then
  grant(channel, '', ttl)
end
settle()

local look = interval
local first = redis.call('ZRANGE', LEASES, 0, 0, 'WITHSCORES')[2]
if first then
  look = math.min(look, math.max(0, tonumber(first) - NOW))
end
if NOW < window then
  look = math.min(look, window - NOW)
end
local head = redis.call('ZRANGE', WAITING, 0, 0, 'WITHSCORES')[2]
local oldest = head and math.max(0, NOW - tonumber(head)) or 0
local shared = {
  redis.call('ZCARD', WAITING), redis.call('ZCARD', HOLDING), limit_text, oldest,
  overridden or '', redis.call('HGET', META, 'override_at') or '',
}
return {epoch or '', look, shared, missed, ended, unknown, surplus, granted, reclaimed}
