-- How every operation of a holder begins: load, visit, and check the lease that ARGV[1] (its id) and ARGV[2]
-- (its incarnation) prove. Leaves the lease's `record`, `backlog`, and in `also` the field that the operation
-- names in its line `reads`.
local id = ARGV[1]
local s = call('HMGET', STATE, 'schema', 'clock', 'seen', 'fence', 'min_ttl', 'next', 'lease/' .. id, $reads)
if s[1] ~= '1' then
  rare().unknown(s[1])
  return {'GONE', 'expired'}
end
local before = tonumber(s[2])
local gap = numbers(s)
local backlog = false
if clock >= next_due or gap * 3 > min_ttl and min_ttl > 0 then
  backlog = rare().visit(before, gap)
  s[7] = call('HGET', STATE, 'lease/' .. id)
end
local record, also = s[7], s[8]
local incarnation, expires = match(record or '', '^(%d+) (%d+) ')
if incarnation ~= ARGV[2] or tonumber(expires) <= clock then
  call('HSET', STATE, 'clock', clock, 'seen', seen)
  return {'GONE', (not expires or tonumber(expires) <= clock) and 'expired' or 'superseded'}
end
