-- flags: none
-- parts: clock space time enter
-- reads: 'lease/' .. ARGV[1], 'done/' .. ARGV[1]
-- Give all of the asks or nothing: from each ask's spans, in their order, the lowest free ports.
-- KEYS  see space.lua
-- ARGV  1 lease id  2 incarnation  3 request number  4 request floor  5 number of asks, then for each ask:
--       protocol, count, quarantine, note, number of spans, then first and last of each span
-- Returns {'GRANTED', 'since first-fence port port ...'} with consecutive fences, {'STALE', number}, {'GONE', reason},
--         {'FULL', index of the ask, backlog, clock, now, port, record} where the last two are of an explicit port
local done = s[8] or rare().damaged('done/' .. id)
local number, floor = tonumber(ARGV[3]), tonumber(ARGV[4])
local settled, highest = match(done, '^(%d+) (%d+)')
settled, highest = tonumber(settled), tonumber(highest)
if number <= highest or number < settled then
  local entry = match(done, ';' .. ARGV[3] .. ' ([^;]*)')
  if entry or number < settled then
    call('HSET', STATE, 'clock', clock, 'seen', seen)
    if not entry or entry == '-' then return {'STALE', ARGV[3]} end
    return {'GRANTED', entry}
  end
end

local names, asked = {}, {}
local mine = (ARGV[5] ~= '1' or ARGV[10] ~= '1') and {}  -- spans and asks may overlap
local at = 6
for ask = 1, tonumber(ARGV[5]) do
  local protocol, missing = ARGV[at], tonumber(ARGV[at + 1])
  local bits = protocol == 'tcp' and KEYS[4] or KEYS[5]
  local spans_end = at + 4 + 2 * ARGV[at + 4]
  for span = at + 5, spans_end, 2 do
    local first, last = tonumber(ARGV[span]), tonumber(ARGV[span + 1])
    while missing > 0 and first <= last do
      local bit = call('BITPOS', bits, 0, first, last, 'BIT')
      if bit < 0 then break end
      if bit < first then rare().damaged(protocol .. ' is missing') end
      local name = format('%s/%05d', protocol, bit)
      if not (mine and mine[name]) then
        if mine then mine[name] = true end
        missing = missing - 1
        names[#names + 1], asked[#names + 1] = name, at
      end
      first = bit + 1
    end
  end
  if missing > 0 then
    local name, record = '', ''
    if spans_end == at + 6 and ARGV[at + 5] == ARGV[at + 6] then
      name = format('%s/%05d', protocol, ARGV[at + 5])
      record = call('HGET', STATE, name) or ''
    end
    done = rare().settle(done, floor, number) .. ';' .. ARGV[3] .. ' -'  -- so a late copy is not granted
    call('HSET', STATE, 'clock', clock, 'seen', seen, 'done/' .. id, done)
    return {'FULL', ask - 1, backlog and 1 or 0, format('%.0f', clock), format('%.0f', now), name, record}
  end
  at = spans_end + 1
end

if #names == 1 then
  if call('HEXISTS', STATE, names[1]) == 1 then rare().damaged('a port is free and in use: ' .. names[1]) end
else
  for i = 1, #names, 1000 do
    for _, known in ipairs(call('HMGET', STATE, unpack(names, i, math.min(i + 999, #names)))) do
      if known then rare().damaged('a port is free and in use: ' .. known) end
    end
  end
end

local since = format('%.0f', now)
local first, first_text = now, since
if fence >= now then
  first = fence + 1
  first_text = format('%.0f', first)
end
fence = first + #names - 1
local entry = since .. ' ' .. first_text .. ' ' .. (#names == 1 and names[1] or table.concat(names, ' '))
if floor > highest and floor >= settled then
  done = ARGV[4] .. ' ' .. ARGV[3]
else
  done = rare().settle(done, floor, number)
end
done = done .. ';' .. ARGV[3] .. ' ' .. entry
if #names == 1 then
  local name = names[1]
  call('ZADD', PORTS, 0, id .. '/' .. name)
  call('SETBIT', ARGV[6] == 'tcp' and KEYS[4] or KEYS[5], tonumber(string.sub(name, 5)), 1)
  call('HSET', STATE, 'clock', clock, 'seen', seen, 'fence', fence, 'done/' .. id, done,
       name, 'h ' .. id .. ' ' .. first_text .. ' ' .. since .. ' ' .. ARGV[8] .. ' ' .. ARGV[9])
else
  local space = rare()
  space.check_types()
  local members, fields = {}, {}
  for i, name in ipairs(names) do
    at = asked[i]
    members[2 * i - 1], members[2 * i] = 0, id .. '/' .. name
    fields[2 * i - 1] = name
    fields[2 * i] = format('h %s %.0f %s %s %s', id, first + i - 1, since, ARGV[at + 2], ARGV[at + 3])
  end
  space.each('ZADD', PORTS, members)
  for _, name in ipairs(names) do space.bit(name, 1) end
  space.each('HSET', STATE, fields)
  call('HSET', STATE, 'clock', clock, 'seen', seen, 'fence', fence, 'done/' .. id, done)
end
return {'GRANTED', entry}
