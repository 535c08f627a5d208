-- One page of the holders or of the waiters. Pages bound the time for which a long line blocks hand-offs.
--
-- KEYS, ARGV 1 to 4   see library.lua
-- ARGV   5 holding | waiting   6 the number after which the page begins   7 the page size
-- Reply  {now, {member, number, ...}, {ticket that took a kept place, when it entered, ...}}
--
-- Races  A page begins after a number, not after a rank: if a ticket leaves between two pages, no other
--        ticket is skipped.

local key = ARGV[5] == 'holding' and KEYS[3] or KEYS[2]
local time = redis.call('TIME')
local rows = redis.call('ZRANGEBYSCORE', key, '(' .. ARGV[6], '+inf', 'WITHSCORES', 'LIMIT', 0, ARGV[7])
local resumed = {}
if key == KEYS[2] and #redis.call('ZRANGEBYSCORE', KEYS[6], '-inf', '(0', 'LIMIT', 0, 1) > 0 then
  for i = 1, #rows, 2 do
    local ticket = string.match(rows[i], '^%S+')
    local entered = redis.call('ZSCORE', KEYS[6], 'e ' .. ticket)
    if entered then
      resumed[#resumed + 1] = ticket
      resumed[#resumed + 1] = -tonumber(entered)
    end
  end
end
return {time[1] * 1000000 + time[2], rows, resumed}
