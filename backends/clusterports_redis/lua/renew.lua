-- flags: allow-oom
-- parts: clock space time enter
-- reads: 'lease/' .. ARGV[1], 'done/' .. ARGV[1], 'revoked/' .. ARGV[1]
-- One heartbeat, however many ports: the lease runs for a full TTL from now. Abandoned requests are undone.
-- KEYS  see space.lua
-- ARGV  1 lease id  2 incarnation  3 floor, then the numbers of abandoned requests, tickets that are left as w<ticket>,
--       the fences of ports that the holder knows to be revoked as f<fence>, how many ports it holds as n<count>, and a
--       fence that it knows of as k<fence>
-- Returns {'RENEWED', backlog, 'fence port;fence port ...' of those that are revoked, or '', 1 when it holds another number}
--         or {'GONE', reason, 1 when there is no trace of it}
space = space or rare(clock, min_ttl, next_due, now)
local done = s[8] or space.damaged('done/' .. id)
local floor, highest = match(done, '^(%d+) (%d+)')
if not floor then space.damaged('done/' .. id) end
if s[9] and string.gsub(s[9] .. ';', '%d+ %l+/%d+;', '') ~= '' then space.damaged('revoked/' .. id) end
floor, highest = math.max(tonumber(floor), tonumber(ARGV[3])), tonumber(highest)
local abandoned, left, heard, count, knew = {}, {}, nil, nil, 0
for i = 4, #ARGV do
  local sort, value = match(ARGV[i], '^([wfnk])(%d+)$')
  if sort == 'n' then
    count = tonumber(value)
  elseif sort == 'k' then
    knew = tonumber(value)
  elseif sort == 'w' then
    left[#left + 1] = value
  elseif sort == 'f' then
    heard = heard or {}
    heard[value] = true
  else
    abandoned[ARGV[i]] = true
    highest = math.max(highest, tonumber(ARGV[i]))
  end
end
local kept = {format('%.0f %.0f', floor, highest)}
if next(abandoned) or #left > 0 or heard then space.check_types() end
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
    space.tell_all('released', mine, records)  -- events
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
local revoked = s[9] or nil
if revoked and heard then
  local untold = {}
  for entry, its_fence in string.gmatch(revoked, '((%d+) [^;]+)') do
    if not heard[its_fence] then untold[#untold + 1] = entry end
  end
  revoked = #untold > 0 and table.concat(untold, ';') or nil
  if revoked then
    call('HSET', STATE, 'revoked/' .. id, revoked)
  else
    call('HDEL', STATE, 'revoked/' .. id)
  end
end
local lease = space.lease(record)
lease.nominal = clock + lease.ttl
lease.expires = lease.nominal
space.put_due('lease/' .. id, lease.expires)
local behind = knew > fence
if behind then
  call('HSET', STATE, 'fence', knew)
  space.recover(clock + lease.ttl)
end
space.wake()
call('HSET', STATE, 'clock', clock, 'seen', seen, 'next', space.next_due, 'lease/' .. id, space.record(lease),
     'done/' .. id, table.concat(kept, ';'))
local other = count and count ~= call('ZLEXCOUNT', PORTS, '[' .. id .. '/', '(' .. id .. '0')
return {'RENEWED', backlog and 1 or 0, revoked or '', (other or behind) and 1 or 0}
