-- The positions of waiters, each in O(log n).
--
-- KEYS, ARGV 1 to 4   see library.lua
-- ARGV   5.. members, at most 500
-- Reply  {numbers (see library.lua), {position, us for which it has waited} or {0} if it does not wait, ...}
--
-- Races  All rows of a reply show the same instant.

-- @include preface

local reply = {numbers()}
for i = 5, #ARGV do
  local rank = redis.call('ZRANK', WAITING, ARGV[i])
  local place = rank and tonumber(redis.call('ZSCORE', WAITING, ARGV[i]))
  reply[#reply + 1] = rank and {rank + 1, math.max(0, NOW - entered_at(ARGV[i], place))} or {0}
end
return reply
