-- A queue at one instant.
--
-- KEYS   see line.lua
-- Reply  {waiting, in use, limit, us for which the head has waited}

local head = redis.call('ZRANGE', WAITING, 0, 0, 'WITHSCORES')[2]
local oldest = head and math.max(0, NOW - tonumber(head)) or 0
return {redis.call('ZCARD', WAITING), redis.call('ZCARD', HOLDING), limit_text, oldest}
