-- flags: allow-oom
-- parts: clock space time enter
-- reads: 'lease/' .. ARGV[1]
-- Turn ports that the lease holds with these very fences into foreign ones; those beyond the most become free.
-- KEYS  see space.lua
-- ARGV  1 lease id  2 incarnation  3 range  4 duration  5 the most of this range  6 note, then port and fence of each
-- Returns {'MARKED', count} or {'GONE', reason, 1 when there is no trace of it}
space = space or rare(clock, min_ttl, next_due, now)
space.check_types()
local range, till, most, note = ARGV[3], clock + ARGV[4], tonumber(ARGV[5]), ARGV[6]
local mine, records = space.held_of_arguments(id, 7)
local marked = tonumber(call('HGET', STATE, 'foreign/' .. range) or 0)
local count = math.max(0, math.min(#mine, most - marked))
local fields, rest, rest_records = {}, {}, {}
for i, name in ipairs(mine) do
  if i <= count then
    fields[2 * i - 1] = name
    fields[2 * i] = format('f %s %.0f,%s %s', match(records[i], '^h (%d+ %d+ %d+) '), till, range, note)
  else
    rest[#rest + 1], rest_records[#rest + 1] = name, records[i]
  end
end
space.end_hold(id, mine)
if count > 0 then
  space.count_down({unpack(records, 1, count)})
  for i = 1, count do space.put_due(mine[i], till) end
  space.each('HSET', STATE, fields)
  call('HSET', STATE, 'foreign/' .. range, marked + count)
end
space.free(rest, rest_records)
for i = 1, count do space.tell('foreign', mine[i], fields[2 * i]) end  -- events
space.tell_all('released', rest, rest_records)  -- events
space.wake()
call('HSET', STATE, 'clock', clock, 'seen', seen, 'next', space.next_due)
return {'MARKED', count}
