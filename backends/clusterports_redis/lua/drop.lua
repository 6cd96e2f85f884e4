-- flags: allow-oom
-- parts: clock space time
-- reads: 'schema'
-- Remove all keys of a space in which there is no lease, no port that is not free, and no place in the queue, and
-- which is not recovering.
-- KEYS  see space.lua; 6, 7, 8 what pick.lua leaves or may have left  9 events
-- ARGV  none
-- Returns {'DROPPED', 1 also when there is no such space, or 0}
if gap then
  -- Each lease, each port that cools or is marked, and each place in the queue is due at some time.
  if call('ZCARD', DUE) > 0 or rare(before, min_ttl, next_due, now).recovers() then return {'DROPPED', 0} end
  -- One of which that list does not know is damaged, and not for us to throw away.
  local cursor = '0'
  repeat
    local page = call('HSCAN', STATE, cursor, 'COUNT', 1000)
    for i = 1, #page[2], 2 do
      local kind = match(page[2][i], '^(%l+)/')
      if kind == 'lease' or kind == 'wait' or kind == 'tcp' or kind == 'udp' or kind == 'both' then
        rare().damaged('due is missing')
      end
    end
    cursor = page[1]
  until cursor == '0'
end
call('DEL', unpack(KEYS))
return {'DROPPED', 1}
