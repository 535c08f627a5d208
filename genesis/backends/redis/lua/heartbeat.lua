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
--        {ticket, ...}               unknown here: data was lost, or a paused instance's waiter was reaped
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
    recover(interval)
  end
  redis.call('ZADD', LEASES, text(NOW + lease), instance)
  redis.call('EXPIRE', mine, ttl)
  redis.call('EXPIRE', WAITING, ttl)
  redis.call('EXPIRE', HOLDING, ttl)
  redis.call('EXPIRE', LEASES, ttl)
  keep_meta(ttl)
end

for i = 7, #ARGV do
  local ticket = ARGV[i]
  local believed_waiting = i - 6 <= waiters
  if not redis.call('ZSCORE', believed_waiting and WAITING or HOLDING, ticket) then
    local number = believed_waiting and redis.call('ZSCORE', HOLDING, ticket)
    local reason = not number and redis.call('HGET', BASE .. 'gone', ticket)
    if number then
      missed[#missed + 1] = {ticket, text(tonumber(number))}
    elseif reason then
      ended[#ended + 1] = {ticket, reason}
    else
      unknown[#unknown + 1] = ticket
    end
  end
end

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
if epoch and NOW - audited >= interval and NOW >= window then
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

grant(channel, '', ttl)
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
