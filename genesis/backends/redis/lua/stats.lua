-- The state of a queue at one instant. For an instance, after dead instances were reaped; for the command
-- line (ARGV 1 is '') read-only: only an instance reaps, and reports what it reaped.
--
-- KEYS, ARGV 1 to 4   see library.lua
-- Reply  {numbers (see library.lua), granted, reclaimed, look, now, override or '', its version, last, until,
--         `epoch` or '', number of instances with a running lease, {instance, lease deadline, ...} of the
--         first lapsed, the latest lease deadline, member of the longest hold or '', member at the head or ''}
--
-- Races  One step: tickets of a dead instance are never counted, and a slot is never shown as free during a
--        hand-off.

-- @include preface

if not override and redis.call('EXISTS', WAITING, HOLDING) == 0 then
  limit = 1
end
if instance ~= '' then
  reap_lapsed()
  grant('')
end
local live = redis.call('ZRANGEBYSCORE', LEASES, '(' .. string.format('%.0f', NOW), '+inf', 'LIMIT', 0, 1)[1]
live = live and redis.call('ZCARD', LEASES) - redis.call('ZRANK', LEASES, live) or 0
local lapsed = redis.call('ZRANGEBYSCORE', LEASES, '(0', NOW, 'WITHSCORES', 'LIMIT', 0, 10)
local furthest = redis.call('ZRANGE', LEASES, -1, -1, 'WITHSCORES')[2] or '0'
return {
  numbers(), granted, reclaimed, more and 0 or -1, NOW, override or '', string.format('%.0f', version), last,
  window, redis.call('HGET', META, 'epoch') or '', live, lapsed, furthest,
  redis.call('ZRANGE', HOLDING, 0, 0)[1] or '', redis.call('ZRANGE', WAITING, 0, 0)[1] or '',
}
