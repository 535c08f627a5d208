-- Register again what an instance has, after Redis lost it.
--
-- KEYS   see line.lua
-- ARGV   1 instance   2 the epoch it knew before the loss   3 lease (us)   4 prefix of the wake-up channels
--        5 the call sites' limit, '' for none
--        6 override, '' if it was ended   7 when that was, '' if there never was one
--        8.. ticket, waiting | holding, number, "<context> <item_id>", and so on by fours
-- Reply  {epoch, us until the instance should look again, {{ticket, number}, ...} granted meanwhile,
--        {{ticket, reason}, ...} ended meanwhile, granted, reclaimed}
--
-- Races  Numbers are kept, so waiters stand in their old order before all who came after the loss. A
--        holder that a stale replica still shows as waiting is taken off the line. A holder is
--        registered even over the limit: it does hold; nobody is granted until the limit has room.
--        An override that was set or ended since this instance last heard of it stays as it is.
--        Sent again after its reply was lost: writes the same once more.

local instance, known, lease, channel = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
local ttl = seconds_to_live(lease)
local mine = BASE .. 'at:' .. instance
local missed, ended = {}, {}

if not epoch then
  epoch = text(NOW)
  redis.call('HSET', META, 'epoch', epoch)
end
if known ~= epoch then
  recover(lease)
end
if ARGV[5] ~= '' and not meta[3] then
  redis.call('HSET', META, 'limit', ARGV[5])
  if not overridden then
    limit = tonumber(ARGV[5])
  end
end
local set_at = tonumber(redis.call('HGET', META, 'override_at') or 0)
if ARGV[7] ~= '' and tonumber(ARGV[7]) > set_at then
  redis.call('HSET', META, 'override_at', ARGV[7])
  if ARGV[6] ~= '' then
    redis.call('HSET', META, 'override', ARGV[6])
    overridden = ARGV[6]
    limit = tonumber(ARGV[6])
  else
    redis.call('HDEL', META, 'override')
    overridden = false
    limit = tonumber(redis.call('HGET', META, 'limit') or 1)
  end
end

for i = 8, #ARGV, 4 do
  local ticket, state, number, blob = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2]), ARGV[i + 3]
  local reason = redis.call('HGET', BASE .. 'gone', ticket)
  if redis.call('EXISTS', BASE .. 'left:' .. ticket) == 1 then
    reason = 'left' -- this is a stray copy, and nobody reads its reply
  end
  local held = redis.call('ZSCORE', HOLDING, ticket)
  if reason == 'reaped' and state == 'waiting' then
    -- it was granted while its instance was stopped, and never knew: it still waits
    redis.call('HDEL', BASE .. 'gone', ticket)
    reason = false
  end
  if reason then
    ended[#ended + 1] = {ticket, reason}
  elseif held then
    redis.call('HSET', mine, ticket, blob)
    missed[#missed + 1] = {ticket, text(tonumber(held))}
  else
    redis.call('HSET', mine, ticket, blob)
    if state == 'holding' then
      redis.call('ZADD', HOLDING, text(number), ticket)
      redis.call('ZREM', WAITING, ticket)
    else
      redis.call('ZADD', WAITING, text(number), ticket)
    end
    last = math.max(last, number)
  end
end
redis.call('HSET', META, 'last', text(last))
if redis.call('EXISTS', mine) == 1 then
  redis.call('ZADD', LEASES, text(NOW + lease), instance)
end
for _, key in ipairs({mine, WAITING, HOLDING, LEASES}) do
  redis.call('EXPIRE', key, ttl)
end
keep_meta(ttl)
grant(channel, '', ttl)

local look = lease / 3
if NOW < window then
  look = math.min(look, window - NOW)
end
return {epoch, look, missed, ended, granted, reclaimed}
