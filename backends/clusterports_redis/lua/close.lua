-- flags: allow-oom
-- parts: clock space time enter
-- reads: 'lease/' .. ARGV[1]
-- Free up to STEP ports of the lease, or let them cool, then end it. To be called until nothing is left.
-- KEYS  see space.lua
-- ARGV  1 lease id  2 incarnation  3 'free' or 'cool'
-- Returns {'CLOSED', 1 when ports are left} or {'GONE', reason, 1 when there is no trace of it}
space = space or rare(clock, min_ttl, next_due, now)
space.check_types()
local names = space.names(id, space.held_by(id, space.STEP))
local records = space.records(names)
if ARGV[3] == 'cool' then
  space.cool(id, names, records, clock, 1)
  space.tell_all('expired', names, records)  -- events
else
  for i, name in ipairs(names) do
    if match(records[i] or '', '^h (%d+) ') ~= id then space.damaged('port ' .. name) end
  end
  space.let_go(id, names, records)
end
if #names < space.STEP then space.drop(id, space.lease(record)) end
space.wake()
call('HSET', STATE, 'clock', clock, 'seen', seen, 'next', space.next_due)
return {'CLOSED', #names == space.STEP and 1 or 0}
