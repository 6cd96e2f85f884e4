-- flags: no-writes
-- parts: clock space time
-- reads: 'lease/' .. ARGV[1]
-- A page of the ports of a lease, in ascending order. The lease is judged as of the last visit: until the next one it
-- may yet be given time to renew.
-- KEYS  see space.lua
-- ARGV  1 lease id  2 incarnation  3 the port after which to begin, or ''  4 the most to return
-- Returns {'HELD', clock, now, port, record, port, record, ...} or {'GONE', reason, 1 when there is no trace of it}
local space = rare(tonumber(s[2]), min_ttl, next_due)
local id = ARGV[1]
if not gap then return {'GONE', 'unknown', 0} end
local lease = space.lease(s[7])
if not lease or lease.expires <= tonumber(s[2]) or lease.incarnation ~= ARGV[2] then
  lease = lease or {}
  return space.gone(id, ARGV[2], lease.incarnation, lease.expires, fence)
end
local from = ARGV[3] == '' and '[' .. id .. '/' or '(' .. id .. '/' .. ARGV[3]
local members = call('ZRANGE', PORTS, from, '(' .. id .. '0', 'BYLEX', 'LIMIT', 0, ARGV[4])
local reply = {'HELD', format('%.0f', clock), format('%.0f', now)}
for _, name in ipairs(space.names(id, members)) do
  local record = call('HGET', STATE, name)
  if match(record or '', '^h (%d+) ') ~= id then space.damaged('port ' .. name) end
  reply[#reply + 1] = name
  reply[#reply + 1] = record
end
return reply
