-- flags: allow-oom
-- parts: clock space time enter
-- reads: 'lease/' .. ARGV[1], 'done/' .. ARGV[1]
-- One heartbeat, however many ports: the lease runs for a full TTL from now. Abandoned requests are undone.
-- KEYS  see space.lua
-- ARGV  1 lease id  2 incarnation  3 floor, then the numbers of abandoned requests, and tickets as w<ticket>
-- Returns {'RENEWED', backlog} or {'GONE', reason}
space = space or rare(clock, min_ttl, next_due)
local done = s[8] or space.damaged('done/' .. id)
local floor, highest = match(done, '^(%d+) (%d+)')
floor, highest = math.max(tonumber(floor), tonumber(ARGV[3])), tonumber(highest)
local abandoned, left = {}, {}
for i = 4, #ARGV do
  local ticket = match(ARGV[i], '^w(%d+)$')
  if ticket then
    left[#left + 1] = ticket
  else
    abandoned[ARGV[i]] = true
    highest = math.max(highest, tonumber(ARGV[i]))
  end
end
local kept = {format('%.0f %.0f', floor, highest)}
if #ARGV > 3 then space.check_types() end
for number, entry in string.gmatch(done, ';(%d+) ([^;]*)') do
  if abandoned[number] and match(entry, '^w') then
    left[#left + 1] = string.sub(entry, 2)
    entry = '-'
  elseif abandoned[number] and entry ~= '-' then
    local names, fences = {}, {}
    local first, ports = match(entry, '^%d+ (%d+) (.*)$')
    for name in string.gmatch(ports, '%S+') do
      names[#names + 1] = name
      fences[#names] = format('%.0f', first + #names - 1)
    end
    local mine, records = space.held(id, names, fences)
    space.end_hold(id, mine)
    space.free(mine, records)
    entry = '-'
  end
  abandoned[number] = nil
  if tonumber(number) >= floor then kept[#kept + 1] = number .. ' ' .. entry end
end
for i = 4, #ARGV do
  if abandoned[ARGV[i]] and tonumber(ARGV[i]) >= floor then
    abandoned[ARGV[i]] = nil
    kept[#kept + 1] = ARGV[i] .. ' -'
  end
end
for _, ticket in ipairs(left) do
  if space.place_of(ticket) == id then space.leave(ticket) end
end
local lease = space.lease(record)
lease.nominal = clock + lease.ttl
lease.expires = lease.nominal
space.put_due('lease/' .. id, lease.expires)
space.wake()
call('HSET', STATE, 'clock', clock, 'seen', seen, 'next', space.next_due, 'lease/' .. id, space.record(lease),
     'done/' .. id, table.concat(kept, ';'))
return {'RENEWED', backlog and 1 or 0}
