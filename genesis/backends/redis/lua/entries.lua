-- One page of the holders or of the waiters. A long line is read in pages, so that it never keeps Redis
-- from hand-offs for longer than one page takes.
--
-- KEYS   see library.lua
-- ARGV   1 holding | waiting   2 the number after which the page begins   3 how many at most
-- Reply  {now, {member, number, ...}}
--
-- Races  Pages go on from a number, not from a rank: a ticket that leaves between two pages moves nobody
--        across the border.

local key = ARGV[1] == 'holding' and KEYS[3] or KEYS[2]
local time = redis.call('TIME')
local rows = redis.call('ZRANGEBYSCORE', key, '(' .. ARGV[2], '+inf', 'WITHSCORES', 'LIMIT', 0, ARGV[3])
return {time[1] * 1000000 + time[2], rows}
