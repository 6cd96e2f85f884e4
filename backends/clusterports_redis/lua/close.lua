-- flags: allow-oom
-- Free up to STEP ports of the lease, or let them cool, then end it. To be called until nothing is left.
-- KEYS  see space.lua
-- ARGV  1 lease id  2 incarnation  3 'free' or 'cool'
-- Returns {'CLOSED', 1 when ports are left} or {'GONE', reason}
local id = ARGV[1]
local lease, refusal = enter(id, ARGV[2])
if not lease then return refusal end
local members = held_by(id, STEP)
if ARGV[3] == 'cool' then
  cool(id, members, clock)
else
  local names = {}
  for i, member in ipairs(members) do names[i] = name_of(id, member) end
  each('ZREM', PORTS, members)
  free(names)
end
if #members < STEP then drop(id, lease) end
commit()
return {'CLOSED', #members == STEP and 1 or 0}
