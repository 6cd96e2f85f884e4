-- flags: no-writes
-- parts: clock
-- reads: none
-- A page of the last events of a space, the latest first.
-- KEYS  see space.lua
-- ARGV  1 the latest entry, '+' at first, then the last that was read with '(' before it  2 the earliest, '-' or as in 1
--       3 how many
-- Returns {'EVENTS', now, entry, event, entry, event, ...}
local reply = {'EVENTS', string.format('%.0f', now)}
for _, entry in ipairs(redis.call('XREVRANGE', KEYS[6], ARGV[1], ARGV[2], 'COUNT', ARGV[3])) do
  reply[#reply + 1] = entry[1]
  reply[#reply + 1] = entry[2][2]
end
return reply
