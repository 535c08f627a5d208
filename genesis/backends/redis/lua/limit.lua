-- Override the limit of a queue, or end the override.
--
-- KEYS, ARGV 1 to 4   see library.lua
-- ARGV   5 the version of the last override that the caller knows, 0 for none   6 the limit, '' to end it
-- Reply  {version}                                  another version is on record: retry with this one
--        {version, granted, reclaimed, look}
--
-- Races  A late duplicate must not undo a newer override: it carries an older version and is rejected. A
--        raised limit is granted to waiters in the same step, so that no newcomer overtakes. A lowered
--        limit takes no slot from a holder.

-- @include preface

if version ~= tonumber(ARGV[5]) then
  return {string.format('%.0f', version)}
end
version = math.max(version + 1, NOW)
limit = tonumber(ARGV[6] ~= '' and ARGV[6] or named ~= '' and named or 1)
set_override(version, ARGV[6])
keep_meta()
reap_lapsed()
grant('')
return {string.format('%.0f', version), granted, reclaimed, more and 0 or -1}
