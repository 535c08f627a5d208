-- Give back whatever a ticket has, and grant the free slots to the heads of the line.
--
-- KEYS   see line.lua
-- ARGV   1 ticket   2 "<context> <item_id>" of the ticket that leaves   3 lease (us)
--        4 prefix of the wake-up channels   5 seconds for which to remember it, at least; if a stray
--        copy of what was said of the ticket may still come (see link.py)
-- Reply  {holding | waiting | '', granted, reclaimed}
--
-- Races  A waiter times out or is cancelled while it is being granted: it has left either way, and
--        the slot it may just have got goes to the next head here. Sent again after its reply was
--        lost: finds nothing and changes nothing. Loss of data: the same. Ended by others: the owner has
--        learned it, so the word about it goes. A stray copy of its enter comes later still: the
--        ticket is remembered as left.

local ttl = seconds_to_live(tonumber(ARGV[3]))
local was = remove(ARGV[1])
if not was then
  redis.call('HDEL', BASE .. 'gone', ARGV[1])
end
grant(ARGV[4], ARGV[1] .. ' ' .. ARGV[2], ttl)
settle()
if ARGV[5] then -- last: a user who may not is refused here, when the slot has passed on
  redis.call('SET', BASE .. 'left:' .. ARGV[1], '1', 'EX', math.max(ttl, tonumber(ARGV[5])))
end
return {was or '', granted, reclaimed}
