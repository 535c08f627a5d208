-- Remove one ticket from the queue, of any instance.
--
-- KEYS, ARGV 1 to 4   see library.lua
-- ARGV   5 member
-- Reply  {1 | 0 if there was no such ticket, granted, reclaimed, look}
--
-- Races  The tombstone is written first. If the owner misses the message, because its connection was lost
--        or because this script lacked a permission, its next sync reports the eviction instead of
--        registering the ticket again. The caller's own ticket is not pushed: the reply reports it.

-- @include preface

local member = ARGV[5]
local found = redis.call('ZSCORE', TICKETS, member) and 1 or 0
if found == 1 then
  keep_meta() -- EXPIRE before commands that use memory, see beat.lua
  redis.call('ZADD', PAST, NOW + RECORD, 't ' .. ticket_of(member))
  redis.call('EXPIRE', PAST, 86400 + RECORD / 1000000)
  remove(member)
  if owner_of(member) ~= instance then
    push(owner_of(member), 'e', member, '')
  end
end
grant('')
return {found, granted, reclaimed, more and 0 or -1}
