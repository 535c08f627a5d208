-- Take back what dead instances left in a queue, before somebody looks at it.
--
-- KEYS   see line.lua
-- ARGV   1 lease (us)   2 prefix of the wake-up channels
-- Reply  {granted, reclaimed}
--
-- Races  None of its own: instances with something in the queue reap with their heartbeats. This is for a
--        queue in which only dead ones have anything left.

local ttl = seconds_to_live(tonumber(ARGV[1]))
reap_lapsed(ttl)
grant(ARGV[2], '', ttl)
settle()
return {granted, reclaimed}
