-- flags: allow-oom
-- parts: clock space time enter
-- reads: 'lease/' .. ARGV[1], ARGV[3] or 'schema'
-- Free ports that the lease holds with these very fences; others are passed over.
-- KEYS  see space.lua
-- ARGV  1 lease id  2 incarnation, then port and fence of each, at most 500
-- Returns {'RELEASED', count} or {'GONE', reason}
local count = 0
if #ARGV == 4 then
  local name = ARGV[3]
  local lease, its_fence = match(s[8] or '', '^h (%d+) (%d+) ')
  if lease == id and its_fence == ARGV[4] then
    call('ZREM', PORTS, id .. '/' .. name)
    local bits = string.sub(name, 1, 3) == 'tcp' and KEYS[4] or KEYS[5]
    local cleared = redis.pcall('SETBIT', bits, tonumber(string.sub(name, 5)), 0)
    if type(cleared) == 'table' then  -- the one key whose type is not known yet
      call('ZADD', PORTS, 0, id .. '/' .. name)
      error(cleared.err, 0)
    end
    call('HDEL', STATE, name)
    count = 1
  end
elseif #ARGV > 4 then
  local names, fences = {}, {}
  for i = 3, #ARGV, 2 do
    names[#names + 1] = ARGV[i]
    fences[#names] = ARGV[i + 1]
  end
  local space = rare()
  space.check_types()
  count = space.free_held(id, names, fences, call('HMGET', STATE, unpack(names)))
end
if seen == now then call('HSET', STATE, 'clock', clock, 'seen', seen) end
return {'RELEASED', count}
