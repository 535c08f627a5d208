-- Override the limit of a queue, or end the override.
--
-- KEYS   see line.lua
-- ARGV   1 the limit, '' to end the override   2 lease (us)   3 prefix of the wake-up channels
--        4 a name of this very call   5 seconds for which that is remembered, at least
-- Reply  {granted, reclaimed}
--
-- Races  A raised limit is granted to waiters in the same step, so no newcomer can come between. A
--        lowered one takes nothing from holders: nobody is granted until enough of them have left.
--        Two set_limit at once: the one that Redis carries out last is in force everywhere. Sent
--        again after its reply was lost, or a stray copy of it that comes when all is over: changes
--        nothing, as somebody may have set another since.

local ttl = seconds_to_live(tonumber(ARGV[2]))
if not redis.call('SET', BASE .. 'left:' .. ARGV[4], '1', 'NX', 'EX',
    math.max(ttl, tonumber(ARGV[5]))) then
  return {granted, reclaimed}
end
if ARGV[1] == '' then
  -- When it ended is kept, so that an instance that registers again does not bring it back.
  redis.call('HDEL', META, 'override')
  redis.call('HSET', META, 'override_at', text(NOW))
  overridden = false
  limit = tonumber(meta[3] or 1)
else
  if not epoch then
    redis.call('HSET', META, 'epoch', text(NOW))
  end
  redis.call('HSET', META, 'override', ARGV[1], 'override_at', text(NOW))
  overridden = ARGV[1]
  limit = tonumber(ARGV[1])
end
keep_meta(ttl)
reap_lapsed(ttl)
grant(ARGV[3], '', ttl)
settle()
return {granted, reclaimed}
