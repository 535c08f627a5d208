-- One page of who holds or who waits. A long line is read in pages, so that it never keeps Redis
-- from the hand-offs for longer than one page takes.
--
-- KEYS   see line.lua
-- ARGV   1 holding | waiting   2 the number after which the page begins   3 how many at most
-- Reply  {{ticket, number, us since, "<context> <item_id>"}, ...}
--
-- Races  Pages go on from a number, not from a rank: whoever leaves between two pages moves nobody
--        across the border.

local key = ARGV[1] == 'holding' and HOLDING or WAITING
local rows = {}
local found = redis.call('ZRANGEBYSCORE', key, '(' .. ARGV[2], '+inf', 'WITHSCORES', 'LIMIT', 0, ARGV[3])
for i = 1, #found, 2 do
  local blob = redis.call('HGET', BASE .. 'at:' .. instance_of(found[i]), found[i]) or ' '
  local number = tonumber(found[i + 1])
  rows[#rows + 1] = {found[i], text(number), math.max(0, NOW - number), blob}
end
return rows
