-- Take one ticket out of the queue, whoever it belongs to.
--
-- KEYS   see line.lua
-- ARGV   1 ticket   2 lease (us)   3 prefix of the wake-up channels
-- Reply  {holding | waiting | evicted (before, by this very call) | '', granted, reclaimed}
--
-- Races  The word for the owner is left before the message is sent, so an owner that misses the
--        message learns it with its next heartbeat instead of registering the ticket again. Sent
--        again after its reply was lost: finds that it was done, even if the owner has left since.

local ttl = seconds_to_live(tonumber(ARGV[2]))
local ticket = ARGV[1]
local done = BASE .. 'left:' .. ticket .. ':evicted'
local was = remove(ticket)
if was then
  leave_word(ticket, 'evicted', ttl)
  redis.call('PUBLISH', ARGV[3] .. instance_of(ticket), 'evicted ' .. ticket)
  grant(ARGV[3], '', ttl)
  settle()
  redis.call('SET', done, '1', 'EX', ttl)
elseif redis.call('EXISTS', done) == 1 then
  was = 'evicted'
end
return {was or '', granted, reclaimed}
