-- One page of the holders or of the waiters. Pages bound the time for which a long line blocks hand-offs.
--
-- KEYS, ARGV 1 to 4   see library.lua
-- ARGV   5 holding | waiting   6 the number after which the page begins   7 the page size
-- Reply  {{member, number, us for which it has held or waited}, ...}
--
-- Races  A page begins after a number, not after a rank: if a ticket leaves between two pages, no other
--        ticket is skipped. With head starts, numbers of waiters can be equal: a page ends after all of them.

-- @include preface

local key = ARGV[5] == 'holding' and HOLDING or WAITING
local after = '(' .. ARGV[6]
local final = redis.call('ZRANGEBYSCORE', key, after, '+inf', 'WITHSCORES', 'LIMIT', ARGV[7] - 1, 1)[2] or '+inf'
local found = redis.call('ZRANGEBYSCORE', key, after, final, 'WITHSCORES')
local rows = {}
for i = 1, #found, 2 do
  local number = tonumber(found[i + 1])
  local since = key == HOLDING and number or entered_at(found[i], number)
  rows[#rows + 1] = {found[i], number, math.max(0, NOW - since)}
end
return rows
