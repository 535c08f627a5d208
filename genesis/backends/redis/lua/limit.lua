-- Override the limit of a queue, or end the override.
--
-- KEYS   see library.lua
-- ARGV   1 instance   2 ''   3 lease (us)   4 prefix of the wake-up channels
--        5 the version of the last override that the caller knows, 0 for none   6 the limit, '' to end it
-- Reply  {0, version}                               another version is on record: retry with this one
--        {1, version, granted, reclaimed, look}
--
-- Races  A late duplicate must not undo a newer override: it carries an older version and is rejected. A
--        raised limit is granted to waiters in the same step, so that no newcomer overtakes. A lowered
--        limit takes no slot from a holder. The version of an ended override is kept for a while, so that
--        a sync does not restore the override.

local instance, lease, channel = ARGV[1], tonumber(ARGV[3]), ARGV[4]
local time = redis.call('TIME')
local NOW = time[1] * 1000000 + time[2]
local meta = redis.call('HMGET', KEYS[1], 'last', 'limit', 'until')
local kept = redis.call('GET', KEYS[7])
local version = tonumber(kept and string.match(kept, '^%d+') or 0)
if version ~= tonumber(ARGV[5]) then
  return {0, string.format('%.0f', version)}
end
local last, window = tonumber(meta[1] or 0), tonumber(meta[3] or 0)
local named = meta[2] and meta[2] ~= '' and meta[2] or 1
local limit = tonumber(ARGV[6] ~= '' and ARGV[6] or named)
-- @include library

version = math.max(version + 1, NOW)
redis.call('SET', KEYS[7], string.format('%.0f', version) .. ' ' .. ARGV[6])
if ARGV[6] == '' then
  redis.call('EXPIRE', KEYS[7], RECORD / 1000000)
  redis.call('HDEL', META, 'override')
  redis.call('HSET', META, 'version', version)
else
  redis.call('HSET', META, 'version', version, 'override', ARGV[6])
end
keep_meta()
reap_lapsed()
grant('')
return {1, string.format('%.0f', version), granted, reclaimed, more and 0 or -1}
