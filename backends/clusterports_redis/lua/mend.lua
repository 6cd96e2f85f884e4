-- flags: allow-oom
-- parts: clock space
-- reads: 'schema'
-- For doctor: the same, and what is found is put right. Or a counter is set to what was counted, unless it has changed.
-- KEYS and reply: see compare.lua
-- ARGV  see compare.lua; or 'counter', its name, its value as it was read or '', what was counted
-- include: allowed
if ARGV[1] == 'counter' then
  local changed = (call('HGET', STATE, ARGV[2]) or '') ~= ARGV[3]
  if not changed then
    if ARGV[4] == '0' then call('HDEL', STATE, ARGV[2]) else call('HSET', STATE, ARGV[2], ARGV[4]) end
  end
  return {'COMPARED', '', '', changed and 0 or 1, {}, {}, {}}
end
-- include: compare
return compare(true)
