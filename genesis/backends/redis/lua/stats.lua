-- The state of a queue at one instant. For an instance, after dead instances were reaped; for the command
-- line (ARGV 1 is '') read-only: only an instance reaps, and reports what it reaped.
--
-- KEYS, ARGV 1 to 4   see library.lua
-- ARGV   5.. members, at most 500, of which an instance asks for the positions, each in O(log n)
-- Reply  {numbers (see library.lua), granted, reclaimed, look, {{position, us for which it has waited}, or {0}
--         if it does not wait, ...}}
--        for the command line: {numbers, now, override or '', its version, last, until, `epoch` or '', number of
--         instances with a running lease, {instance, lease deadline, ...} of the first lapsed, the latest lease
--         deadline, member of the longest hold or '', member at the head or ''}
--
-- Races  One step: tickets of a dead instance are never counted, a slot is never shown as free during a
--        hand-off, and all positions are those of the same instant.

-- @include preface

if not override and redis.call('EXISTS', WAITING, HOLDING) == 0 then
  limit = 1
end
if instance ~= '' then
  reap_lapsed()
  grant('')
  local rows = {}
  for i = 5, #ARGV do
    local rank = redis.call('ZRANK', WAITING, ARGV[i])
    local place = rank and tonumber(redis.call('ZSCORE', WAITING, ARGV[i]))
    rows[#rows + 1] = rank and {rank + 1, math.max(0, NOW - entered_at(ARGV[i], place))} or {0}
  end
  return {numbers(), granted, reclaimed, more and 0 or -1, rows}
end
local live = redis.call('ZRANGEBYSCORE', LEASES, '(' .. string.format('%.0f', NOW), '+inf', 'LIMIT', 0, 1)[1]
live = live and redis.call('ZCARD', LEASES) - redis.call('ZRANK', LEASES, live) or 0
local lapsed = redis.call('ZRANGEBYSCORE', LEASES, '(0', NOW, 'WITHSCORES', 'LIMIT', 0, 10)
local furthest = redis.call('ZRANGE', LEASES, -1, -1, 'WITHSCORES')[2] or '0'
return {
  numbers(), NOW, override or '', string.format('%.0f', version), last, window,
  redis.call('HGET', META, 'epoch') or '', live, lapsed, furthest,
  redis.call('ZRANGE', HOLDING, 0, 0)[1] or '', redis.call('ZRANGE', WAITING, 0, 0)[1] or '',
}
