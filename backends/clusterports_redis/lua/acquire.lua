-- flags: none
-- Give all of the asks or nothing: from each ask's spans, in their order, the lowest free ports.
-- KEYS  see space.lua
-- ARGV  1 lease id  2 incarnation  3 request number  4 request floor  5 number of asks, then for each ask:
--       protocol, count, quarantine, note, number of spans, then first and last of each span
-- Returns {'GRANTED', 'since first-fence port port ...'} with consecutive fences, {'STALE', number}, {'GONE', reason} or
--         {'FULL', index of the ask, backlog, clock, now, port, record} where the last two are of an explicit port
local id, number, floor = ARGV[1], ARGV[3], tonumber(ARGV[4])
local lease, s, backlog = enter(id, ARGV[2], 'done/' .. id)
if not lease then return s end

local done = s[7] or damaged('done/' .. id)
local entry = string.match(done, ';' .. number .. ' ([^;]*)')
if entry or tonumber(number) < tonumber(string.match(done, '^%d+')) then
  commit()
  if not entry or entry == '-' then return {'STALE', number} end
  return {'GRANTED', entry}
end

local names, asked, mine = {}, {}, {}
local at = 6
for ask = 1, tonumber(ARGV[5]) do
  local protocol, missing, spans = ARGV[at], tonumber(ARGV[at + 1]), tonumber(ARGV[at + 4])
  for span = at + 5, at + 3 + 2 * spans, 2 do
    local first, last = tonumber(ARGV[span]), tonumber(ARGV[span + 1])
    while missing > 0 and first <= last do
      local bit = call('BITPOS', BITS[protocol], 0, first, last, 'BIT')
      if bit < 0 then break end
      if bit < first then damaged(protocol .. ' is missing') end
      local name = string.format('%s/%05d', protocol, bit)
      if not mine[name] then
        mine[name] = true
        names[#names + 1], asked[#names + 1] = name, at
        missing = missing - 1
      end
      first = bit + 1
    end
  end
  if missing > 0 then
    local name, record = '', false
    if spans == 1 and ARGV[at + 5] == ARGV[at + 6] then
      name = string.format('%s/%05d', protocol, ARGV[at + 5])
      record = call('HGET', STATE, name)
    end
    commit()
    return {'FULL', ask - 1, backlog and 1 or 0, int(clock), int(now), name, record or ''}
  end
  at = at + 5 + 2 * spans
end

for i = 1, #names, CHUNK do
  for _, record in ipairs(call('HMGET', STATE, unpack(names, i, math.min(i + CHUNK - 1, #names)))) do
    if record then damaged('a port is free and held: ' .. record) end
  end
end

local first = next_fence(#names)
local since = int(now)
local members, fields = {}, {}
for i, name in ipairs(names) do
  at = asked[i]
  members[2 * i - 1], members[2 * i] = '0', id .. '/' .. name
  fields[2 * i - 1] = name
  fields[2 * i] = 'h ' .. id .. ' ' .. int(first + i - 1) .. ' ' .. since .. ' ' .. ARGV[at + 2] .. ' ' .. ARGV[at + 3]
end
entry = since .. ' ' .. int(first) .. ' ' .. table.concat(names, ' ')
done = settle(done, floor) .. ';' .. number .. ' ' .. entry
each('ZADD', PORTS, members)
for _, name in ipairs(names) do bit_of(name, 1) end
if #fields == 2 then
  commit('done/' .. id, done, fields[1], fields[2])
else
  each('HSET', STATE, fields)
  commit('done/' .. id, done)
end
return {'GRANTED', entry}
