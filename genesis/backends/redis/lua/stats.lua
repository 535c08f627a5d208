-- The numbers of a queue at one instant, after dead instances were reaped.
--
-- KEYS   see library.lua
-- ARGV   1 instance of the caller   2 ''   3 lease (us)   4 prefix of the wake-up channels
-- Reply  {numbers (see library.lua), granted, reclaimed, look}
--
-- Races  Reaping and counting are one step, so tickets of a dead instance are never counted.

local instance, lease, channel = ARGV[1], tonumber(ARGV[3]), ARGV[4]
local time = redis.call('TIME')
local NOW = time[1] * 1000000 + time[2]
local meta = redis.call('HMGET', KEYS[1], 'last', 'limit', 'override', 'until')
local override = meta[3]
if not override then
  local kept = redis.call('GET', KEYS[7])
  override = kept and string.match(kept, '^%d+ (%d+)$')
end
local last, window = tonumber(meta[1] or 0), tonumber(meta[4] or 0)
local named = meta[2] and meta[2] ~= '' and redis.call('EXISTS', KEYS[2], KEYS[3]) > 0 and meta[2]
local limit = tonumber(override or named or 1)
-- @include library

reap_lapsed()
grant('')
return {numbers(), granted, reclaimed, more and 0 or -1}
