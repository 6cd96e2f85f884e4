-- flags: allow-oom
-- parts: clock space time enter
-- reads: 'lease/' .. ARGV[1]
-- Free up to STEP ports of the lease, or let them cool, then end it. To be called until nothing is left.
-- KEYS  see space.lua
-- ARGV  1 lease id  2 incarnation  3 'free' or 'cool'
-- Returns {'CLOSED', 1 when ports are left} or {'GONE', reason}
local space = rare(clock, min_ttl, next_due)
space.check_types()
local members = space.held_by(id, space.STEP)
if ARGV[3] == 'cool' then
  space.cool(id, members, clock)
else
  space.each('ZREM', PORTS, members)
  space.free(space.names(id, members))
end
if #members < space.STEP then space.drop(id, space.lease(record)) end
call('HSET', STATE, 'clock', clock, 'seen', seen, 'next', space.next_due)
return {'CLOSED', #members == space.STEP and 1 or 0}
