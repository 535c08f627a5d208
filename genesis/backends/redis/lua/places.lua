-- The positions of waiters, each in O(log n).
--
-- KEYS, ARGV 1 to 4   see library.lua
-- ARGV   5.. members, at most 500
-- Reply  {now, depth, limit, holds in the mean, their mean (us), {position or 0, place, ...},
--         {ticket that took a kept place, when it entered, ...}}
--
-- Races  All rows of a reply show the same instant.

local time = redis.call('TIME')
local meta = redis.call('HMGET', KEYS[1], 'limit', 'override', 'holds', 'mean')
local rows, resumed = {}, {}
local any_resumed = #redis.call('ZRANGEBYSCORE', KEYS[6], '-inf', '(0', 'LIMIT', 0, 1) > 0
for i = 5, #ARGV do
  local member = ARGV[i]
  local rank = redis.call('ZRANK', KEYS[2], member)
  rows[#rows + 1] = rank and rank + 1 or 0
  rows[#rows + 1] = rank and tonumber(redis.call('ZSCORE', KEYS[2], member)) or 0
  local ticket = string.match(member, '^%S+')
  local entered = any_resumed and redis.call('ZSCORE', KEYS[6], 'e ' .. ticket)
  if entered then
    resumed[#resumed + 1] = ticket
    resumed[#resumed + 1] = -tonumber(entered)
  end
end
return {
  time[1] * 1000000 + time[2], redis.call('ZCARD', KEYS[2]),
  meta[2] or meta[1] and meta[1] ~= '' and meta[1] or '1', tonumber(meta[3] or 0), tonumber(meta[4] or 0), rows,
  resumed,
}
