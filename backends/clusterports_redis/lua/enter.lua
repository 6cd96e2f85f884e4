-- How every operation of a holder begins: visit, and check the lease that ARGV[1] (its id) and ARGV[2] (its
-- incarnation) prove; its record is the first field read. Leaves `id`, `record`, `backlog`, and `space` if the visit
-- had anything to do, as it always has while anybody waits.
if not gap then return {'GONE', 'unknown', 0} end
local id, record, backlog, space = ARGV[1], s[7], false
if clock >= next_due or gap * 3 > min_ttl and min_ttl > 0 then
  space = rare(clock, min_ttl, next_due, now)
  backlog = space.visit(before, gap)
  min_ttl, next_due = space.min_ttl, space.next_due
  record = call('HGET', STATE, 'lease/' .. id)
end
local incarnation, expires = match(record or '', '^(%d+) (%d+) ')
if incarnation ~= ARGV[2] or tonumber(expires) <= clock then
  call('HSET', STATE, 'clock', clock, 'seen', seen)
  return (space or rare(clock, min_ttl, next_due, now)).gone(id, ARGV[2], incarnation, expires, fence)
end
