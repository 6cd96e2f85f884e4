-- flags: none
-- Open the lease of an instance, answer it again to the same process, or take it over.
-- KEYS  see space.lua
-- ARGV  1 instance  2 token  3 ttl  4 incarnation to supersede, 0: none
-- Returns {'OPENED', id, incarnation, ports held} or {'OCCUPIED', incarnation}
local instance, token, ttl, supersede = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
local s = load('name/' .. instance)
if s then
  visit(s)
else
  clock, fence, min_ttl = 0, 0, 0
  call('SETBIT', BITS.tcp, 65535, 0)
  call('SETBIT', BITS.udp, 65535, 0)
  call('HSET', STATE, 'schema', SCHEMA)
end
local id = call('HGET', STATE, 'name/' .. instance)
local lease = id and parse_lease(call('HGET', STATE, 'lease/' .. id))
local fresh = not lease or lease.expires <= clock
if not fresh and lease.token ~= token and lease.incarnation ~= supersede then
  commit()
  return {'OCCUPIED', lease.incarnation}
end
if fresh or lease.token ~= token then
  local incarnation = int(next_fence(1))
  if fresh then id = incarnation end
  lease = {incarnation = incarnation, ttl = ttl, nominal = clock + ttl, expires = clock + ttl, token = token,
           instance = instance}
  if min_ttl == 0 or ttl < min_ttl then min_ttl = ttl end
  call('ZADD', PORTS, 0, 'lease/' .. id)
  call('ZADD', DUE, int(lease.expires), 'lease/' .. id)
  commit('lease/' .. id, lease_record(lease), 'name/' .. instance, id, 'done/' .. id, '1')
else
  commit()
end
return {'OPENED', id, lease.incarnation, call('ZLEXCOUNT', PORTS, '[' .. id .. '/', '(' .. id .. '0')}
