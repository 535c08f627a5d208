-- An instance lists its tickets: at first contact, after a reconnect, a loss of data or a pause.
--
-- KEYS   see library.lua
-- ARGV   1 instance   2 session   3 lease (us)   4 prefix of the wake-up channels
--        5 the last session whose sync got a reply, 0 for none   6 Redis's time of the last renewal that
--          the instance knows, 0 for none   7 the override that it knows, or ''   8 its version, 0 for none
--        9 the call sites' limit, '' for none   10 '1' on the first page, or ''   11 '1' on the last, or ''
--        12 the page lists all tickets after this one ('' for the first page)
--        13 up to this one ('' for the last page)
--        14.. six per ticket: member, stage, number, 'free' or '', max waiting or '', `<kept id> <place>` or ''
--          stage h holding (number is the token), w waiting (the place), e entering (0); or k: left, and the
--          fourth and the sixth are the last two arguments of leave.lua
-- Reply  {-1, session on record}   late: this session or a greater one is on record
--        {0}                       not the first page, and another session is on record: sync first
--        {1, now, look, rows, override or '', version, more, numbers, reclaimed, 1 if data was lost,
--         the limit that others named, if an entering call names another one, or '',
--         granted: all grants except those of this page, holders: the first few, if a call enters}
--          one row per ticket: {1 granted, token | 2 waiting, place | 3 busy, 0 | 4 full, 0, holds, mean
--          | 5 evicted, 0 | 6 lost, 0 | 7 left, its state as in leave.lua}; the third of 1 and 2 is 1 if it
--          took its kept place, the fourth of 2 the position if it was entering; more: Redis has unlisted
--          tickets of this instance left, sync again
--
-- Races  Every listed ticket is judged before any grant, and the recovery window opens before that. A
--        tombstone keeps an evicted ticket out. An instance that was reaped and does not know it (confirmed
--        <= reaped) has lost its slots; each sync repeats that until the instance has confirmed one. After
--        a fail-over, a holder that the replica still had as waiting is moved to the holders.

local instance, session, lease, channel = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local confirmed, renewed = tonumber(ARGV[5]), tonumber(ARGV[6])
local first_page, last_page = ARGV[10] == '1', ARGV[11] == '1'
local time = redis.call('TIME')
local NOW = time[1] * 1000000 + time[2]
local meta = redis.call(
  'HMGET', KEYS[1], instance, instance .. ':r', 'last', 'limit', 'override', 'version', 'until'
)
local record, reaped = tonumber(meta[1] or 0), tonumber(meta[2] or 0)
if first_page and session <= math.abs(record) then
  return {-1, math.abs(record)}
elseif not first_page and record ~= session then
  return {0}
end
local last, window = tonumber(meta[3] or 0), tonumber(meta[7] or 0)
local named, override, version = meta[4] or '', meta[5], tonumber(meta[6] or 0)
local limit = 1
-- @include library

-- EXPIRE before commands that use memory, see beat.lua.
keep_meta()
keep_line()
redis.call('ZADD', LEASES, NOW + lease, instance)
if first_page then
  redis.call('HSET', META, instance, ARGV[2])
end
keep_meta()

-- The override is the one on record (in meta, or in key 7, which outlives meta), or the instance's if newer.
if version == 0 then
  local kept = redis.call('GET', KEYS[7])
  if kept then
    version, override = string.match(kept, '^(%d+) (%d*)$')
    version, override = tonumber(version), override ~= '' and override
  end
end
if tonumber(ARGV[8]) > version then
  version, override = tonumber(ARGV[8]), ARGV[7] ~= '' and ARGV[7]
  redis.call('SET', KEYS[7], string.format('%.0f', version) .. ' ' .. (override or ''))
  if not override then
    redis.call('EXPIRE', KEYS[7], RECORD / 1000000)
  end
end
if version > 0 and version ~= tonumber(meta[6] or 0) then
  redis.call('HSET', META, 'version', version)
  if override then
    redis.call('HSET', META, 'override', override)
  else
    redis.call('HDEL', META, 'override')
  end
end
if redis.call('EXISTS', WAITING, HOLDING) == 0 and named ~= ARGV[9] or named == '' and ARGV[9] ~= '' then
  named = ARGV[9]
  redis.call('HSET', META, 'limit', named)
end
limit = tonumber(override or named ~= '' and named or 1)

local late = renewed > 0 and NOW > renewed + lease
local forgotten = renewed > 0 and NOW > renewed + RECORD
local lost_data = first_page and confirmed > math.abs(record) and not forgotten
if lost_data then
  open_window()
end

local rows, entering = {}, {}
local known = {}
for i = 14, #ARGV, 6 do
  local member, stage, number = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2])
  local row = nil
  known[member] = true
  local held = redis.call('ZSCORE', HOLDING, member)
  local place = not held and redis.call('ZSCORE', WAITING, member)
  if redis.call('ZSCORE', PAST, 't ' .. ticket_of(member)) then
    row = {5, 0}
  elseif stage == 'k' then
    local was = redis.call('ZREM', HOLDING, member) == 1 and 1
    was = was or redis.call('ZREM', WAITING, member) == 1 and 2 or 3
    redis.call('ZREM', TICKETS, member)
    known[member] = nil
    local us, ticket = tonumber(ARGV[i + 3]), ticket_of(member)
    if not us and was ~= 3 then
      give_back(ARGV[i + 5], member)
    elseif us and us > 0 and not redis.call('ZSCORE', PAST, 'u ' .. ticket) then
      redis.call('ZADD', PAST, 'NX', NOW + us, 'k ' .. ticket .. ' ' .. ARGV[i + 5])
      redis.call('EXPIRE', PAST, 86400 + RECORD / 1000000)
    end
    row = {7, was}
  elseif held then
    row = {1, tonumber(held)}
  elseif place and stage == 'h' then
    redis.call('ZREM', WAITING, member)
    if confirmed <= reaped or late then
      redis.call('ZREM', TICKETS, member)
      row = {6, 0}
    else
      redis.call('ZADD', HOLDING, number, member)
      last = math.max(last, number)
      open_window()
      row = {1, number}
    end
  elseif place then
    row = {2, tonumber(place)}
  elseif stage == 'h' and (confirmed <= reaped or late) then
    row = {6, 0}
  elseif stage == 'h' then
    redis.call('ZADD', HOLDING, number, member)
    redis.call('ZADD', TICKETS, 0, member)
    last = math.max(last, number)
    open_window()
    row = {1, number}
  elseif stage == 'w' and forgotten then
    row = {5, 0}
  elseif stage == 'w' then
    if confirmed > reaped then
      open_window()
    end
    if ARGV[i + 5] ~= '' then -- it took a kept place, which must not be taken twice
      local id = string.match(ARGV[i + 5], '^%S+')
      local expiry = redis.call('ZSCORE', PAST, 'k ' .. ARGV[i + 5])
      redis.call('ZREM', PAST, 'k ' .. ARGV[i + 5])
      redis.call('ZADD', PAST, math.max(expiry or 0, NOW + RECORD), 'u ' .. id)
      redis.call('EXPIRE', PAST, 86400 + RECORD / 1000000)
    end
    redis.call('ZADD', WAITING, number, member)
    redis.call('ZADD', TICKETS, 0, member)
    last = math.max(last, number)
    row = {2, number}
  else
    entering[#entering + 1] = i
  end
  if row and row[1] <= 2 and ARGV[i + 5] ~= '' then
    row[3] = redis.call('ZSCORE', PAST, 'e ' .. ticket_of(member)) and 1 or 0
  end
  rows[(i - 8) / 6] = row or {0, 0}
end

-- The last call site's limit wins, as in enter.lua: the first sync of most instances enters a queue that
-- others already use.
local previous = ''
if #entering > 0 and ARGV[9] ~= '' and ARGV[9] ~= named then
  previous, named = named, ARGV[9]
  redis.call('HSET', META, 'limit', named)
  limit = tonumber(override or named)
end

-- Remove this instance's tickets that are in the page's range but not listed.
local lowest, highest = range_of(instance)
if ARGV[12] ~= '' then
  lowest = '(' .. ARGV[12]
end
if ARGV[13] ~= '' then
  highest = '[' .. ARGV[13]
end
local there = redis.call('ZRANGEBYLEX', TICKETS, lowest, highest, 'LIMIT', 0, 2 * PORTION)
local removed = 0
for _, member in ipairs(there) do
  if not known[member] and removed < PORTION then
    redis.call('ZREM', HOLDING, member)
    redis.call('ZREM', WAITING, member)
    redis.call('ZREM', TICKETS, member)
    removed = removed + 1
  end
end
local unlisted = removed == PORTION or #there == 2 * PORTION

reap_lapsed()
for _, i in ipairs(entering) do
  local member, waiters = ARGV[i], redis.call('ZCARD', WAITING)
  local row = (i - 8) / 6
  grant('') -- serve the waiters before the newcomer
  waiters = redis.call('ZCARD', WAITING)
  local free = waiters == 0 and redis.call('ZCARD', HOLDING) < limit and NOW >= window
  if not free and ARGV[i + 3] == 'free' then
    rows[row] = {3, 0}
  else
    if not free and ARGV[i + 4] ~= '' and waiters >= tonumber(ARGV[i + 4]) then
      local holds = redis.call('HMGET', META, 'holds', 'mean')
      rows[row] = {4, 0, tonumber(holds[1] or 0), tonumber(holds[2] or 0)}
    else
      local number = next_number()
      local kept = take_kept(ARGV[i + 5], member)
      local resumed = kept and 1 or 0
      redis.call('ZADD', TICKETS, 0, member)
      if free then
        redis.call('ZADD', HOLDING, number, member)
        rows[row] = {1, number, resumed}
      else
        number = kept or number - head_start_of(member)
        redis.call('ZADD', WAITING, number, member)
        rows[row] = {2, number, resumed}
      end
    end
  end
end
redis.call('HSET', META, 'last', last)
if last_page then
  grant('')
end
local place_in = {}
for i = 14, #ARGV, 6 do
  place_in[ARGV[i]] = (i - 8) / 6
end
local elsewhere = {}
for _, pair in ipairs(granted) do
  local row = place_in[pair[1]]
  if not row then
    elsewhere[#elsewhere + 1] = pair
  else
    rows[row] = {1, pair[2], rows[row][3] or 0}
  end
end
for i = 14, #ARGV, 6 do
  local row = rows[(i - 8) / 6]
  if ARGV[i + 1] == 'e' and row[1] == 2 then
    row[3], row[4] = row[3] or 0, redis.call('ZRANK', WAITING, ARGV[i]) + 1
  end
end
keep_line()
return {
  1, NOW, look(), rows, override or '', string.format('%.0f', version), unlisted and 1 or 0, numbers(),
  reclaimed, lost_data and 1 or 0, previous, elsewhere,
  #entering > 0 and redis.call('ZRANGE', HOLDING, 0, 2) or {},
}
