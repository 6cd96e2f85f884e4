-- flags: no-writes
-- parts: clock
-- reads: none
-- A page of the last events of a space, the latest first.
-- KEYS  1 events
-- ARGV  1 the latest entry, '+' at first, then the last that was read with '(' before it  2 the earliest, '-' or as in 1
--       3 how many
-- Returns {'EVENTS', now, the earliest to be asked for from now on, entry, event, entry, event, ...}
local call, log, earliest = redis.call, KEYS[1], ARGV[2]
local found = call('XREVRANGE', log, ARGV[1], earliest, 'COUNT', ARGV[3])
if #found == 0 and ARGV[1] == '+' and earliest ~= '-' then
  local last = call('XREVRANGE', log, '+', '-', 'COUNT', 1)[1]
  if last and '(' .. last[1] ~= earliest then  -- it is another log, which was begun while the clock was behind
    earliest = '-'
    found = call('XREVRANGE', log, '+', '-', 'COUNT', ARGV[3])
  end
end
local reply = {'EVENTS', string.format('%.0f', now), earliest}
for _, entry in ipairs(found) do
  reply[#reply + 1] = entry[1]
  reply[#reply + 1] = entry[2][2]
end
return reply
