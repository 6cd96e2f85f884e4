-- flags: allow-oom
-- parts: clock space time
-- reads: 'schema'
-- For operators: take a port that is still as it was seen. A held one cools for its quarantine, or until its lease would
-- run out if that is later, and its holder is told with its next heartbeat; one that cools, or is marked as foreign, is
-- free.
-- KEYS  see space.lua
-- ARGV  1 port  2 its fence  3 its state: h, c or f
-- Returns {'FORCED', 1, or 0 when it is not as it was}
-- include: allowed
if not gap then return {'FORCED', 0} end
local space = rare(clock, min_ttl, next_due, now)
space.visit(before, gap)
local name = ARGV[1]
local record = call('HGET', STATE, name)
local state, id, its_fence = match(record or '', '^(%l) (%d+) (%d+) ')
local done = state == ARGV[3] and its_fence == ARGV[2]
if done and state == 'h' then
  local told = call('HGET', STATE, 'revoked/' .. id)
  local lease = space.lease(call('HGET', STATE, 'lease/' .. id)) or space.damaged('lease/' .. id)
  local quarantine = tonumber(match(record, '^h %d+ %d+ %d+ (%d+)') or space.damaged('port ' .. name))
  space.cool(id, {name}, {record}, math.max(clock, lease.expires - quarantine), 1)
  call('HSET', STATE, 'revoked/' .. id, (told and told .. ';' or '') .. its_fence .. ' ' .. name)
elseif done then
  call('ZREM', DUE, name)
  space.free({name}, {record})
end
if done then space.tell('forced', name, record) end  -- events
space.wake()
call('HSET', STATE, 'clock', clock, 'seen', seen, 'next', space.next_due)
return {'FORCED', done and 1 or 0}
