-- The start of every script without a fast path: reads the state of the queue. The line
-- `-- @include preface` of a script is replaced by this text.

local instance, lease, channel = ARGV[1], tonumber(ARGV[3]), ARGV[4]
local time = redis.call('TIME')
local NOW = time[1] * 1000000 + time[2]
local meta = redis.call(
  'HMGET', KEYS[1], 'last', 'limit', 'override', 'version', 'until', instance, instance .. ':r'
)
local last, window = tonumber(meta[1] or 0), tonumber(meta[5] or 0)
local named, override, version = meta[2] or '', meta[3], tonumber(meta[4] or 0)
if version == 0 then -- key 7 outlives meta
  local kept = redis.call('GET', KEYS[7])
  if kept then
    version, override = string.match(kept, '^(%d+) (%d*)$')
    version, override = tonumber(version), override ~= '' and override
  end
end
local limit = tonumber(override or named ~= '' and named or 1)
-- @include library
