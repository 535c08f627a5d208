-- An instance lists its tickets: at first contact, after a reconnect, a loss of data or a pause.
--
-- KEYS, ARGV 1 to 4   see library.lua
-- ARGV   5 the last session whose sync got a reply, 0 for none   6 Redis's time of the last renewal that
--          the instance knows, 0 for none   7 the override that it knows, or ''   8 its version, 0 for none
--        9 the call sites' limit, '' for none
--        10 the page lists all tickets after this one ('' for the first page)
--        11 up to this one ('' for the last page)
--        12.. five per ticket: member, stage, number, max waiting or '', `<kept id> <place>` or ''
--          stage h holding (number is the token), w waiting (the place), e entering (0); or k: left, and the
--          fourth and the fifth are the last two arguments of leave.lua
-- Reply  {-1, session on record}   late: this session or a greater one is on record
--        {0}                       not the first page, and another session is on record: sync first
--        {1, now, override or '', version, numbers, rows, 1 if data was lost, the limit that others named, if
--         an entering call names another one, or '', holders: the first few, if a call enters, 1 if Redis has
--         more unlisted tickets of this instance: sync again, granted: all grants except those of this page,
--         reclaimed, look}
--          one row per ticket: see `admit` in library.lua; a row of 1 or 2 might end before the position, or
--          before the kept place; or {5 evicted, 0 | 6 lost, 0 | 7 left, its state as in leave.lua}
--
-- Races  Every listed ticket is judged before any grant, and the recovery window opens before that. A
--        tombstone keeps an evicted ticket out. An instance that was reaped and does not know it (confirmed
--        <= reaped) has lost its slots; each sync repeats that until the instance has confirmed one. After
--        a fail-over, a holder that the replica still had as waiting is moved to the holders.

-- @include preface

local confirmed, renewed, first_page = tonumber(ARGV[5]), tonumber(ARGV[6]), ARGV[10] == ''
local session, record, reaped = tonumber(ARGV[2]), math.abs(tonumber(meta[6] or 0)), tonumber(meta[7] or 0)
if first_page and session <= record then
  return {-1, record}
elseif not first_page and meta[6] ~= ARGV[2] then
  return {0}
end

-- EXPIRE before commands that use memory, see beat.lua.
keep_line()
redis.call('ZADD', LEASES, NOW + lease, instance)
if first_page then
  redis.call('HSET', META, instance, ARGV[2])
  prune()
end
keep_meta()

-- The override is the one on record, or the instance's if newer.
if tonumber(ARGV[8]) > version then
  version, override = tonumber(ARGV[8]), ARGV[7] ~= '' and ARGV[7]
end
if version ~= tonumber(meta[4] or 0) then
  set_override(version, override or '')
end
if redis.call('EXISTS', WAITING, HOLDING) == 0 and named ~= ARGV[9] or named == '' and ARGV[9] ~= '' then
  named = ARGV[9]
  redis.call('HSET', META, 'limit', named)
end
limit = tonumber(override or named ~= '' and named or 1)

-- The place that a ticket took before Redis forgot the ticket must not be taken twice.
local function use_up(kept)
  if kept ~= '' then
    local expiry = redis.call('ZSCORE', PAST, 'k ' .. kept)
    redis.call('ZREM', PAST, 'k ' .. kept)
    redis.call('ZADD', PAST, math.max(expiry or 0, NOW + RECORD), 'u ' .. ticket_of(kept))
    redis.call('EXPIRE', PAST, 86400 + RECORD / 1000000)
  end
end

local late = renewed > 0 and NOW > renewed + lease
local forgotten = renewed > 0 and NOW > renewed + RECORD
local lost_data = first_page and confirmed > record and not forgotten
if lost_data then
  open_window()
end

local rows, entering, index_of = {}, {}, {}
for i = 12, #ARGV, 5 do
  local member, stage, number = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2])
  local most, kept = ARGV[i + 3], ARGV[i + 4]
  local index, row = #rows + 1, {0, 0}
  index_of[member] = index
  local held = redis.call('ZSCORE', HOLDING, member)
  local place = not held and redis.call('ZSCORE', WAITING, member)
  if redis.call('ZSCORE', PAST, 't ' .. ticket_of(member)) then
    row = {5, 0}
  elseif stage == 'k' then
    row = {7, remove(member)}
    local us, ticket = tonumber(most), ticket_of(member)
    if not us and row[2] ~= 3 then
      give_back(kept, member)
    elseif us and us > 0 and not redis.call('ZSCORE', PAST, 'u ' .. ticket) then
      redis.call('ZADD', PAST, 'NX', NOW + us, 'k ' .. ticket .. ' ' .. kept)
      redis.call('EXPIRE', PAST, 86400 + RECORD / 1000000)
    end
  elseif held then
    row = {1, tonumber(held)}
  elseif stage == 'h' then -- unknown, or waiting
    remove(member)
    use_up(kept)
    row = {6, 0}
    if confirmed > reaped and not late then
      redis.call('ZADD', HOLDING, number, member)
      last = math.max(last, number)
      open_window()
      row = {1, number}
    end
  elseif place then
    row = {2, tonumber(place)}
  elseif stage == 'w' and forgotten then
    row = {5, 0}
  elseif stage == 'w' then
    if confirmed > reaped then
      open_window()
    end
    use_up(kept)
    redis.call('ZADD', WAITING, number, member)
    last = math.max(last, number)
    row = {2, number}
  else
    entering[#entering + 1] = i
  end
  if row[1] == 1 or row[1] == 2 then
    redis.call('ZADD', TICKETS, 0, member) -- also if it is known: this key might have been lost alone
    if kept ~= '' then
      row[3] = redis.call('ZSCORE', PAST, 'e ' .. ticket_of(member)) and 1 or 0
    end
  end
  rows[index] = row
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
if ARGV[10] ~= '' then
  lowest = '(' .. ARGV[10]
end
if ARGV[11] ~= '' then
  highest = '[' .. ARGV[11]
end
local there = redis.call('ZRANGEBYLEX', TICKETS, lowest, highest, 'LIMIT', 0, 2 * PORTION)
local removed = 0
for _, member in ipairs(there) do
  if not index_of[member] and removed < PORTION then
    remove(member)
    removed = removed + 1
  end
end
local unlisted = removed == PORTION or #there == 2 * PORTION

reap_lapsed()
for _, i in ipairs(entering) do
  rows[index_of[ARGV[i]]] = admit(ARGV[i], ARGV[i + 3], ARGV[i + 4])
end
redis.call('HSET', META, 'last', last)
if ARGV[11] == '' then
  grant('')
end
local elsewhere = {}
for _, pair in ipairs(granted) do
  local index = index_of[pair[1]]
  if index then
    rows[index] = {1, pair[2], rows[index][3] or 0}
  else
    elsewhere[#elsewhere + 1] = pair
  end
end
for i = 12, #ARGV, 5 do
  local row = rows[index_of[ARGV[i]]]
  if ARGV[i + 1] == 'e' and row[1] == 2 then -- after the grants, which change positions
    row[3], row[4] = row[3] or 0, redis.call('ZRANK', WAITING, ARGV[i]) + 1
  end
end
keep_line()
return {
  1, NOW, override or '', string.format('%.0f', version), numbers(), rows, lost_data and 1 or 0, previous,
  #entering > 0 and redis.call('ZRANGE', HOLDING, 0, 2) or {}, unlisted and 1 or 0, elsewhere, reclaimed, look(),
}
