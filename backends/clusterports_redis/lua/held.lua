-- flags: no-writes
-- A page of the ports of a lease, in ascending order.
-- KEYS  see space.lua
-- ARGV  1 lease id  2 incarnation  3 the port after which to begin, or ''  4 the most to return
-- Returns {'HELD', clock, now, port, record, port, record, ...} or {'GONE', reason}
local id = ARGV[1]
local s = load('lease/' .. id)
if not s then return {'GONE', 'expired'} end
clock = clock_at(tonumber(s[3]))
local lease, refusal = live(s[6], ARGV[2])
if not lease then return refusal end
local from = ARGV[3] == '' and '[' .. id .. '/' or '(' .. id .. '/' .. ARGV[3]
local reply = {'HELD', int(clock), int(now)}
for _, member in ipairs(call('ZRANGE', PORTS, from, '(' .. id .. '0', 'BYLEX', 'LIMIT', 0, ARGV[4])) do
  local name = name_of(id, member)
  reply[#reply + 1] = name
  reply[#reply + 1] = call('HGET', STATE, name) or damaged('port ' .. name)
end
return reply
