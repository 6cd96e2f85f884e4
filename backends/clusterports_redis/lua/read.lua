-- flags: no-writes
-- parts: clock space time
-- reads: 'schema'
-- A page of all that a space holds, for status. A field may come twice, or as it was a page before.
-- KEYS  see space.lua
-- ARGV  1 cursor, '0' at first  2 about how many fields
-- Returns {'SPACE', cursor, clock, now, fence, the clock at the last visit, the time since, for how long it recovers,
--         field, value, field, value, ...}, cursor '0' at the end
if not gap then return {'SPACE', '0', '0', format('%.0f', now), '0', '0', '0', '0'} end
local till = rare(clock, min_ttl, next_due, now).recovers(before)
local page = call('HSCAN', STATE, ARGV[1], 'COUNT', ARGV[2])
local reply = {'SPACE', page[1], format('%.0f', clock), format('%.0f', now), format('%.0f', fence), format('%.0f', before),
               format('%.0f', gap), format('%.0f', till and till - clock or 0)}
local fields = page[2]
local shown = {lease = true, wait = true, tcp = true, udp = true, both = true}
for i = 1, #fields, 2 do
  if shown[match(fields[i], '^(%l*)/?')] then
    reply[#reply + 1] = fields[i]
    reply[#reply + 1] = fields[i + 1]
  end
end
return reply
