-- flags: allow-oom
-- parts: clock space time
-- reads: 'schema'
-- Visit a space: the lease clock advances, up to STEP ports that are due are reclaimed.
-- KEYS  see space.lua
-- ARGV  none
-- Returns {'RECLAIMED', backlog}
-- include: allowed
if not gap then return {'RECLAIMED', 0} end
local backlog = rare(clock, min_ttl, next_due, now).visit(before, gap)
call('HSET', STATE, 'clock', clock, 'seen', seen)
return {'RECLAIMED', backlog and 1 or 0}
