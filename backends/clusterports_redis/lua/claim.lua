-- flags: allow-oom
-- parts: clock space time enter
-- reads: 'lease/' .. ARGV[1], 'done/' .. ARGV[1]
-- Take back ports that the store has lost, under the fences by which they were granted. The higher fence wins; of two
-- that are equal, which only a clock that went back can give, the one that is there.
-- KEYS  see space.lua
-- ARGV  1 lease id  2 incarnation  3 request number  4 request floor, then of each port, at most 250: port, fence,
--       hold, note (see pick.lua), and 'owned/<tag>' where it counts against a limit, else ''
-- Returns {'CLAIMED', 'fence port;fence port ...' of those that the lease does not hold now} or {'GONE', reason, 1 when there is no trace of it}
space = space or rare(clock, min_ttl, next_due, now)
space.check_types()
local done = s[8] or space.damaged('done/' .. id)
local number, floor = tonumber(ARGV[3]), tonumber(ARGV[4])
local settled = tonumber(match(done, '^(%d+)'))
local lost, lease = false, space.lease(record)
for i = 5, #ARGV, 5 do
  for name, found in pairs(space.in_the_way(match(ARGV[i], '^(%l+)/(%d+)$'))) do space.holder_of(name, found) end
end
if number >= settled and not match(done, ';' .. ARGV[3] .. ' ') then
  call('HSET', STATE, 'done/' .. id, space.settle(done, floor, number) .. ';' .. ARGV[3] .. ' -')
  for i = 5, #ARGV, 5 do
    if space.take_back(id, lease.instance, unpack(ARGV, i, i + 4)) then lost = true end
    fence = math.max(fence, tonumber(ARGV[i + 1]))
  end
  if lost and not space.recovers() then space.recover(clock + lease.ttl) end
end
local refused = {}
for i = 5, #ARGV, 5 do
  local its_lease, its_fence = match(call('HGET', STATE, ARGV[i]) or '', '^h (%d+) (%d+) ')
  if its_lease ~= id or its_fence ~= ARGV[i + 1] then refused[#refused + 1] = ARGV[i + 1] .. ' ' .. ARGV[i] end
end
space.wake()
call('HSET', STATE, 'clock', clock, 'seen', seen, 'fence', fence, 'next', space.next_due)
return {'CLAIMED', table.concat(refused, ';')}
