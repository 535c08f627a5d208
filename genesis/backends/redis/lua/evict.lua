-- Remove one ticket from the queue, of any instance.
--
-- KEYS   see library.lua
-- ARGV   1 instance of the caller   2 ''   3 lease (us)   4 prefix of the wake-up channels   5 member
-- Reply  {1 | 0 if there was no such ticket, granted, reclaimed, look}
--
-- Races  The tombstone is written first. If the owner misses the message, because its connection was lost
--        or because this script lacked a permission, its next sync reports the eviction instead of
--        registering the ticket again. The caller's own ticket is not pushed: the reply reports it.

local instance, lease, channel = ARGV[1], tonumber(ARGV[3]), ARGV[4]
local time = redis.call('TIME')
local NOW = time[1] * 1000000 + time[2]
local meta = redis.call('HMGET', KEYS[1], 'last', 'limit', 'override', 'until')
local last, window = tonumber(meta[1] or 0), tonumber(meta[4] or 0)
local limit = tonumber(meta[3] or meta[2] and meta[2] ~= '' and meta[2] or 1)
-- @include library

local member = ARGV[5]
local there = redis.call('ZSCORE', WAITING, member) or redis.call('ZSCORE', HOLDING, member)
local found = there and 1 or 0
if there then
  keep_meta() -- EXPIRE before commands that use memory, see beat.lua
  redis.call('ZADD', PAST, NOW + RECORD, 't ' .. ticket_of(member))
  redis.call('EXPIRE', PAST, 86400 + RECORD / 1000000)
  redis.call('ZREM', WAITING, member)
  redis.call('ZREM', HOLDING, member)
  redis.call('ZREM', TICKETS, member)
  if owner_of(member) ~= instance then
    push(owner_of(member), 'e', member, '')
  end
end
grant('')
return {found, granted, reclaimed, more and 0 or -1}
