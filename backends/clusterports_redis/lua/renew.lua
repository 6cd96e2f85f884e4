-- flags: allow-oom
-- parts: clock space time enter
-- reads: 'lease/' .. ARGV[1], 'done/' .. ARGV[1]
-- One heartbeat, however many ports: the lease runs for a full TTL from now. Abandoned requests are undone.
-- KEYS  see space.lua
-- ARGV  1 lease id  2 incarnation  3 floor, then the numbers of abandoned requests
-- Returns {'RENEWED', backlog} or {'GONE', reason}
local space = rare()
local done = s[8] or space.damaged('done/' .. id)
local highest = 0
for i = 4, #ARGV do
  local number = ARGV[i]
  local entry = match(done, ';' .. number .. ' ([^;]*)')
  if entry and entry ~= '-' then
    local names, fences, records = {}, {}, {}
    local first, ports = match(entry, '^%d+ (%d+) (.*)$')
    for name in string.gmatch(ports, '%S+') do
      names[#names + 1] = name
      fences[#names] = format('%.0f', first + #names - 1)
      records[#names] = call('HGET', STATE, name)
    end
    space.free_held(id, names, fences, records)
    done = string.gsub(done, ';' .. number .. ' [^;]*', ';' .. number .. ' -')
  elseif not entry and tonumber(number) >= tonumber(match(done, '^%d+')) then
    done = done .. ';' .. number .. ' -'
    highest = math.max(highest, tonumber(number))
  end
end
local lease = space.lease(record)
lease.nominal = clock + lease.ttl
lease.expires = lease.nominal
space.put_due('lease/' .. id, lease.expires)
call('HSET', STATE, 'clock', clock, 'seen', seen, 'next', next_due, 'lease/' .. id, space.record(lease),
     'done/' .. id, space.settle(done, tonumber(ARGV[3]), highest))
return {'RENEWED', backlog and 1 or 0}
