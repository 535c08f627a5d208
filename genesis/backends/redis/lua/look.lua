-- The state of a queue, for the command line. Read-only: tickets of a dead instance are shown, because only
-- an instance reaps and reports them.
--
-- KEYS   see library.lua
-- ARGV   none
-- Reply  {now, numbers (see library.lua), override or '', its version, last, until, `epoch` or '',
--         number of instances with a running lease, {instance, lease deadline, ...} of the first lapsed,
--         the latest lease deadline, member of the longest hold or '', member at the head or ''}
--
-- Races  One step, so that a slot is never shown as free during a hand-off.

local time = redis.call('TIME')
local NOW = time[1] * 1000000 + time[2]
local instance, lease, channel = '', 0, ''
local meta = redis.call('HMGET', KEYS[1], 'last', 'limit', 'override', 'until', 'epoch')
local kept = redis.call('GET', KEYS[7]) or '0 '
local override = meta[3] or string.match(kept, '^%d+ (%d+)$')
local last, window = tonumber(meta[1] or 0), tonumber(meta[4] or 0)
local named = meta[2] and meta[2] ~= '' and redis.call('EXISTS', KEYS[2], KEYS[3]) > 0 and meta[2]
local limit = tonumber(override or named or 1)
-- @include library

local live = redis.call('ZRANGEBYSCORE', LEASES, '(' .. string.format('%.0f', NOW), '+inf', 'LIMIT', 0, 1)[1]
live = live and redis.call('ZCARD', LEASES) - redis.call('ZRANK', LEASES, live) or 0
local lapsed = redis.call('ZRANGEBYSCORE', LEASES, '(0', NOW, 'WITHSCORES', 'LIMIT', 0, 10)
local furthest = redis.call('ZRANGE', LEASES, -1, -1, 'WITHSCORES')[2] or '0'
return {
  NOW, numbers(), override or '', string.match(kept, '^%d+'), last, window, meta[5] or '', live, lapsed, furthest,
  redis.call('ZRANGE', HOLDING, 0, 0)[1] or '', redis.call('ZRANGE', WAITING, 0, 0)[1] or '',
}
