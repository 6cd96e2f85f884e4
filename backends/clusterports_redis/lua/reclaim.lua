-- flags: allow-oom
-- parts: clock space
-- Visit a space: the lease clock advances, up to STEP ports that are due are reclaimed.
-- KEYS  see space.lua
-- ARGV  none
-- Returns {'RECLAIMED', backlog}
local s = call('HMGET', STATE, 'schema', 'clock', 'seen', 'fence', 'min_ttl', 'next')
if s[1] ~= '1' then
  rare().unknown(s[1])
  return {'RECLAIMED', 0}
end
local before, gap = tonumber(s[2]), numbers(s)
local backlog = rare().visit(before, gap)
call('HSET', STATE, 'clock', clock, 'seen', seen)
return {'RECLAIMED', backlog and 1 or 0}
