-- flags: allow-oom
-- Free ports that the lease holds with these very fences; others are passed over.
-- KEYS  see space.lua
-- ARGV  1 lease id  2 incarnation, then port and fence of each, at most 900
-- Returns {'RELEASED', count} or {'GONE', reason}
local id = ARGV[1]
local names, fences = {}, {}
for i = 3, #ARGV, 2 do
  names[#names + 1] = ARGV[i]
  fences[#names] = ARGV[i + 1]
end
local lease, s = enter(id, ARGV[2], unpack(names))
if not lease then return s end
local records = {unpack(s, 7, 6 + #names)}
local count = free_held(id, names, fences, records)
commit()
return {'RELEASED', count}
