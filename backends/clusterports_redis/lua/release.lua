-- flags: allow-oom
-- parts: clock space time enter
-- reads: 'lease/' .. ARGV[1], ARGV[3] or 'schema'
-- Let go of ports that the lease holds with these very fences; others are passed over.
-- KEYS  see space.lua
-- ARGV  1 lease id  2 incarnation, then port and fence of each, at most 500
-- Returns {'RELEASED', count, and if any are: 'fence port;fence port ...' of those that were taken by force} or
-- {'GONE', reason, 1 when there is no trace of it}
local count, revoked = 0
local lease, its_fence, plain
if #ARGV == 4 and not space then
  lease, its_fence, plain = match(s[8] or '', '^h (%d+) (%d+) %d+ %d+([ ,])')
  if not (lease == id and its_fence == ARGV[4]) then plain = 'not ours' end
end
if plain == 'not ours' then
  -- nothing to let go of
elseif plain == ' ' and string.sub(ARGV[3], 4, 4) == '/' then  -- one port like most
  local name = ARGV[3]
  call('ZREM', PORTS, id .. '/' .. name)
  local bits = string.sub(name, 1, 3) == 'tcp' and KEYS[4] or KEYS[5]
  local cleared = redis.pcall('SETBIT', bits, tonumber(string.sub(name, 5)), 0)
  if type(cleared) == 'table' then  -- the one key whose type is not known yet
    call('ZADD', PORTS, 0, id .. '/' .. name)
    error(cleared.err, 0)
  end
  call('HDEL', STATE, name)
  if #s[8] > 512 then rare(clock, min_ttl, next_due, now).tell('released', name, s[8]) else  -- events
  redis.pcall('XADD', KEYS[#KEYS], 'MAXLEN', '~', '$events', '*', 'e', format('released %.0f ', now) .. name .. ' ' .. s[8])  -- events
  end  -- events
  count = 1
elseif #ARGV > 2 then
  space = space or rare(clock, min_ttl, next_due, now)
  space.check_types()
  local mine, records = space.held_of_arguments(id, 3)
  space.let_go(id, mine, records)
  count = #mine
  space.wake()
  call('HSET', STATE, 'next', space.next_due)
end
if seen == now then call('HSET', STATE, 'clock', clock, 'seen', seen) end
if 2 * count < #ARGV - 2 then
  local taken, found = {}, {}
  for entry in string.gmatch(call('HGET', STATE, 'revoked/' .. id) or '', '[^;]+') do taken[entry] = true end
  for i = 3, #ARGV, 2 do
    local entry = ARGV[i + 1] .. ' ' .. ARGV[i]
    if taken[entry] then
      found[#found + 1] = entry
      taken[entry] = nil
    end
  end
  if #found > 0 then revoked = table.concat(found, ';') end
end
return {'RELEASED', count, revoked}
