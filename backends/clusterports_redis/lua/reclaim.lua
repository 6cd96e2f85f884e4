-- flags: allow-oom
-- Visit a space: the lease clock advances, up to STEP ports that are due are reclaimed.
-- KEYS  see space.lua
-- ARGV  none
-- Returns {'RECLAIMED', backlog}
local s = load()
if not s then return {'RECLAIMED', 0} end
local backlog = visit(s)
commit()
return {'RECLAIMED', backlog and 1 or 0}
