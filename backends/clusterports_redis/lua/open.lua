-- flags: allow-oom
-- parts: clock space time
-- reads: 'schema'
-- Open the lease of an instance, answer it again to the same process, or take it over.
-- KEYS  see space.lua
-- ARGV  1 instance  2 token  3 ttl  4 incarnation to supersede, 0: none  5 the highest fence that the caller knew, 0: none
-- Returns {'OPENED', id, incarnation, ports held} or {'OCCUPIED', incarnation, token}
-- include: allowed
local name, token, ttl = 'name/' .. ARGV[1], ARGV[2], tonumber(ARGV[3])
if not gap then
  clock, seen, fence, min_ttl, next_due = 0, now, 0, 0, 9007199254740991  -- the last: nothing will ever be due
  call('SETBIT', KEYS[4], 65535, 0)
  call('SETBIT', KEYS[5], 65535, 0)
end
local space = rare(clock, min_ttl, next_due, now)
if gap then space.visit(before, gap) end
local knew = tonumber(ARGV[5])
if knew > fence then
  fence = knew
  space.recover(clock + ttl)
elseif knew > 0 and knew < tonumber(call('HGET', STATE, 'born') or 0) then
  space.recover(ttl)  -- the lease clock began with the space
end
local id = gap and call('HGET', STATE, name)
local lease = id and space.lease(call('HGET', STATE, 'lease/' .. id))
if lease and lease.instance ~= ARGV[1] then space.damaged('lease/' .. id .. ' has another name') end
if not lease or lease.expires <= clock or lease.token ~= token then
  local fresh = not lease or lease.expires <= clock
  if not fresh and lease.incarnation ~= ARGV[4] then
    call('HSET', STATE, 'clock', clock, 'seen', seen, 'fence', fence, 'next', space.next_due)
    return {'OCCUPIED', lease.incarnation, lease.token}
  end
  fence = math.max(fence + 1, now)
  local incarnation = format('%.0f', fence)
  if fresh then id = incarnation end
  if not gap then call('HSET', STATE, 'born', id) end
  lease = {incarnation = incarnation, ttl = ttl, nominal = clock + ttl, expires = clock + ttl, token = token,
           instance = ARGV[1]}
  if space.min_ttl == 0 or ttl < space.min_ttl then space.min_ttl = ttl end
  call('ZADD', PORTS, 0, 'lease/' .. id)
  space.put_due('lease/' .. id, lease.expires)
  call('HSET', STATE, name, id, 'lease/' .. id, space.record(lease), 'done/' .. id, '1 0')
end
call('HSET', STATE, 'schema', '1', 'clock', clock, 'seen', seen, 'fence', fence, 'min_ttl', space.min_ttl,
     'next', space.next_due)
return {'OPENED', id, lease.incarnation, call('ZLEXCOUNT', PORTS, '[' .. id .. '/', '(' .. id .. '0')}
