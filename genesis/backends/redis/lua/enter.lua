-- Take a free slot, or the last place in the line.
--
-- KEYS   see line.lua
-- ARGV   1 ticket   2 "<context> <item_id>"   3 the call site's limit, '' for none
--        4 'free' to be refused rather than wait, or ''
--        5 the epoch that the instance knows if it has other tickets here, or ''
--        6 lease (us)   7 prefix of the wake-up channels   8 '1' if this is sent again
-- Reply  {state, number, position, depth, epoch, previous limit or '', us until this instance should
--        look again or -1, granted, reclaimed}
--        state is granted | waiting | refused | gone; number is the fencing token or the place
--
-- Races  Sent again after its reply was lost, or arriving a second time, late, from a connection that
--        was given up: the ticket is found and its state told once more; if it was evicted
--        meanwhile, it stays so; if it was reaped, while its instance was stopped, it enters anew; if
--        it has left, nothing. A newcomer never overtakes: it gets a slot only if nobody waits, after
--        the free slots went to those who do. The instance knew another epoch: data was lost, so
--        nothing is granted before everybody has registered again.

local ticket, blob, wanted, only_if_free = ARGV[1], ARGV[2], ARGV[3], ARGV[4] == 'free'
local known, lease, channel = ARGV[5], tonumber(ARGV[6]), ARGV[7]
local ttl = seconds_to_live(lease)
local instance = instance_of(ticket)
local mine = BASE .. 'at:' .. instance
local previous = ''

local function depth()
  return redis.call('ZCARD', WAITING)
end

local function next_look()
  local first = redis.call('ZRANGE', LEASES, 0, 0, 'WITHSCORES')[2]
  local due = first and tonumber(first) or NOW + lease
  if NOW < window then
    due = math.min(due, window)
  end
  return math.max(0, due - NOW)
end

local function reply(state, number, position, waiters, look)
  return {state, text(number), position, waiters, epoch, previous, look, granted, reclaimed}
end

local again = redis.call('HEXISTS', mine, ticket) == 1
if again or ARGV[8] == '1' then
  local number = redis.call('ZSCORE', HOLDING, ticket)
  if number then
    return reply('granted', tonumber(number), 0, depth(), -1)
  end
  number = redis.call('ZSCORE', WAITING, ticket)
  if number then
    return reply('waiting', tonumber(number), redis.call('ZRANK', WAITING, ticket) + 1, depth(), next_look())
  end
  local word = redis.call('HGET', BASE .. 'gone', ticket)
  if word == 'evicted' then
    epoch = epoch or ''
    return reply('gone', 0, 0, depth(), -1)
  elseif word then
    redis.call('HDEL', BASE .. 'gone', ticket) -- reaped, and never knew that it had been granted
  end
end

if not again and redis.call('EXISTS', BASE .. 'left:' .. ticket) == 1 then
  epoch = epoch or ''
  return reply('gone', 0, 0, depth(), -1)
end

if not epoch then
  epoch = text(NOW)
  redis.call('HSET', META, 'epoch', epoch)
  keep_meta(ttl)
end
if known ~= '' and known ~= epoch then
  recover(lease)
end

if wanted ~= '' and wanted ~= meta[3] then
  redis.call('HSET', META, 'limit', wanted)
  previous = meta[3] or ''
  if not overridden then
    limit = tonumber(wanted)
  end
end

local waiters = depth()
local holders = redis.call('ZCARD', HOLDING)
if waiters > 0 or holders >= limit or NOW < window then
  reap_lapsed(ttl)
  grant(channel, '', ttl)
  waiters = depth()
  holders = redis.call('ZCARD', HOLDING)
end

local free = waiters == 0 and holders < limit and NOW >= window
if not free and only_if_free then
  settle()
  return reply('refused', 0, 0, waiters, -1)
end

redis.call('HSET', mine, ticket, blob)
local arrived = redis.call('ZADD', LEASES, text(NOW + lease), instance) == 1
local number = next_number()
redis.call('HSET', META, 'last', text(number))
redis.call('ZADD', free and HOLDING or WAITING, text(number), ticket)
-- Whoever has something here came newly a moment ago, or beats. So if both put off the expiry of all
-- that there is, nothing expires under many who come and go too quickly ever to beat.
if arrived or redis.call('HLEN', mine) == 1 then
  redis.call('EXPIRE', mine, ttl) -- it may be new although the lease is not, after a loss of data
  redis.call('EXPIRE', LEASES, ttl)
end
if holders > 0 and arrived or holders == 0 and free then
  redis.call('EXPIRE', HOLDING, ttl)
end
if waiters > 0 and arrived or waiters == 0 and not free then
  redis.call('EXPIRE', WAITING, ttl)
end
if arrived or free and holders == 0 or waiters == 0 and not free then
  keep_meta(ttl)
end
if free then
  return reply('granted', number, 0, 0, -1)
end
return reply('waiting', number, waiters + 1, waiters + 1, next_look())
