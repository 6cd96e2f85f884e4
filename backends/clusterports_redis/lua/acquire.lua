-- flags: none
-- parts: clock space time enter
-- reads: 'lease/' .. ARGV[1], 'done/' .. ARGV[1]
-- Give all of the asks or nothing.
-- KEYS  see space.lua, and pick.lua
-- ARGV  1 lease id  2 incarnation  3 request number  4 request floor
--       5 number of asks, or for one that may wait: 1, window, ticket, and 1 to keep the place; then the asks, see pick.lua;
--       last a fence that the caller knows of
-- Returns {'GRANTED', 'since first-fence port port ...'} with consecutive fences, {'STALE', number}, {'GONE', reason, 1 when there is no trace of it},
--         {'QUEUED', ticket, first, due in}, {'RECOVERING', for how long},
--         {'FULL', index of the ask, why, backlog, clock, now, port, record} where the last two are of an explicit port
local done = s[8] or rare().damaged('done/' .. id)
local number, floor = tonumber(ARGV[3]), tonumber(ARGV[4])
local settled, highest = match(done, '^(%d+) (%d+)')
if not settled then rare().damaged('done/' .. id) end
settled, highest = tonumber(settled), tonumber(highest)
if number <= highest or number < settled then
  local entry = match(done, ';' .. ARGV[3] .. ' ([^;]*)')
  if entry or number < settled then
    call('HSET', STATE, 'clock', clock, 'seen', seen)
    local place = match(entry or '', '^w(%d+)$')
    -- Where anybody waits there is `space`.
    if place and match(ARGV[5], ' ') and space and space.place_of(place) then return space.queued(place, false) end
    if not entry or entry == '-' or place then return {'STALE', ARGV[3]} end
    return {'GRANTED', entry}
  end
end
if floor > highest and floor >= settled then
  done = ARGV[4] .. ' ' .. ARGV[3]
else
  done = rare().settle(done, floor, number)
end
local knew = tonumber(ARGV[#ARGV])
if knew > fence then
  space = space or rare(clock, min_ttl, next_due, now)
  fence = knew
  space.recover(clock + space.lease(record).ttl)
  space.recovering = space.recovers()
  call('HSET', STATE, 'fence', fence, 'next', 0)
end
if space and space.recovering then
  call('HSET', STATE, 'clock', clock, 'seen', seen, 'done/' .. id, done .. ';' .. ARGV[3] .. ' -')
  return {'RECOVERING', format('%.0f', space.recovering - clock)}
end
local since = format('%.0f', now)
local first, first_text = now, since
if fence >= now then
  first = fence + 1
  first_text = format('%.0f', first)
end

-- One port like most: no closure, no table.
if ARGV[10] == '' and ARGV[7] == '1' and ARGV[5] == '1' and ARGV[6] ~= 'both' and not space then
  local bits, bit = ARGV[6] == 'tcp' and KEYS[4] or KEYS[5]
  for i = 12, #ARGV - 1, 2 do
    bit = call('BITPOS', bits, 0, ARGV[i], ARGV[i + 1], 'BIT')
    if bit >= 0 then
      if bit < tonumber(ARGV[i]) then rare().damaged(ARGV[6] .. ' is missing') end
      break
    end
  end
  if bit and bit >= 0 then
    local name = format('%s/%05d', ARGV[6], bit)
    local known = call('HMGET', STATE, name, format('both/%05d', bit))
    if known[1] or known[2] then rare().damaged('a port is free and in use: ' .. name) end
    local entry = since .. ' ' .. first_text .. ' ' .. name
    call('ZADD', PORTS, 0, id .. '/' .. name)
    call('SETBIT', bits, bit, 1)
    local held = 'h ' .. id .. ' ' .. first_text .. ' ' .. since .. ' ' .. ARGV[8] .. ' ' .. ARGV[9]
    call('HSET', STATE, 'clock', clock, 'seen', seen, 'fence', first, 'done/' .. id, done .. ';' .. ARGV[3] .. ' ' .. entry,
         name, held)
    if #held > 512 then rare(clock, min_ttl, next_due, now).tell('acquired', name, held) else  -- events
    redis.pcall('XADD', KEYS[#KEYS], 'MAXLEN', '~', '$events', '*', 'e', 'acquired ' .. since .. ' ' .. name .. ' ' .. held)  -- events
    end  -- events
    return {'GRANTED', entry}
  end
end

-- include: pick
space = space or rare(clock, min_ttl, next_due, now)
if not space.check_types() then space.damaged('tcp or udp is missing, or not whole') end
local window, ticket, keep = match(ARGV[5], ' (%d+) (%d+) ([01])$')
if ticket then
  if tonumber(ticket) > fence or (space.place_of(ticket) or id) ~= id then ticket = '0' end
end
local picked = picker(space)
picked.pick(6, tonumber(match(ARGV[5], '^%d+')), ticket and tonumber(ticket) or 0)
if picked.why then
  -- what is settled so is not granted to a late copy
  if (tonumber(window) or 0) == 0 or picked.why == 'limit' then
    call('HSET', STATE, 'clock', clock, 'seen', seen, 'done/' .. id, done .. ';' .. ARGV[3] .. ' -')
    if ticket then space.leave(ticket) end
    space.wake()
    picked.tell_refused(id)  -- events
    local name, record = picked.explicit()
    return {'FULL', picked.refused, picked.why, backlog and 1 or 0, format('%.0f', clock), format('%.0f', now), name, record}
  end
  if ticket == '0' then
    ticket = first_text
    fence = first
  end
  space.enter_queue(ticket, id, picked.wanted(), clock + window)
  call('HSET', STATE, 'clock', clock, 'seen', seen, 'fence', fence, 'next', 0,
       'done/' .. id, done .. ';' .. ARGV[3] .. ' w' .. ticket)
  return space.queued(ticket, picked.why ~= 'queue')
end

local names = picked.names
fence = first + #names - 1
local entry = since .. ' ' .. first_text .. ' ' .. table.concat(names, ' ')
local members, fields = {}, {}
local high, low = math.floor(first / 1000000), first % 1000000  -- %.0f takes long, and %d may have 32 bits only
local before, after, ask = 'h ' .. id .. ' ', '', nil
for i, name in ipairs(names) do
  if picked.asked[i] ~= ask then
    ask = picked.asked[i]
    after = ' ' .. since .. ' ' .. ask.hold .. ' ' .. ask.note
  end
  local part = low + i - 1
  local fence_text = part < 1000000 and high > 0 and high < 2147483647 and format('%d%06d', high, part)
                     or format('%.0f', first + i - 1)
  members[2 * i - 1], members[2 * i] = '0', id .. '/' .. name
  fields[2 * i - 1], fields[2 * i] = name, before .. fence_text .. after
end
for name, value in pairs(picked.counters) do
  fields[#fields + 1] = name
  fields[#fields + 1] = value
end
space.evict(picked.evicted)
space.each('ZADD', PORTS, members)
space.set_bits('tcp', picked.bits.tcp, 1)
space.set_bits('udp', picked.bits.udp, 1)
space.each('HSET', STATE, fields)
call('HSET', STATE, 'clock', clock, 'seen', seen, 'fence', fence, 'done/' .. id, done .. ';' .. ARGV[3] .. ' ' .. entry)
if keep == '1' and ticket ~= '0' then
  space.enter_queue(ticket, id, picked.wanted(), clock + window)
  call('HSET', STATE, 'next', 0)
elseif ticket then
  space.leave(ticket)
end
space.wake()
for i = math.max(1, #names - $events + 1), #names do space.tell('acquired', names[i], fields[2 * i]) end  -- events
return {'GRANTED', entry}
