-- flags: allow-oom
-- One heartbeat, however many ports: the lease runs for a full TTL from now. Abandoned requests are undone.
-- KEYS  see space.lua
-- ARGV  1 lease id  2 incarnation  3 floor, then the numbers of abandoned requests
-- Returns {'RENEWED', backlog} or {'GONE', reason}
local id = ARGV[1]
local lease, s, backlog = enter(id, ARGV[2], 'done/' .. id)
if not lease then return s end

local done = s[7] or damaged('done/' .. id)
local settled = tonumber(string.match(done, '^%d+'))
for i = 4, #ARGV do
  local number = ARGV[i]
  local entry = string.match(done, ';' .. number .. ' ([^;]*)')
  if entry and entry ~= '-' then
    local names, fences, records = {}, {}, {}
    local _, fence_text, ports = string.match(entry, '^(%d+) (%d+) (.*)$')
    for name in string.gmatch(ports, '%S+') do
      names[#names + 1] = name
      fences[#names] = int(tonumber(fence_text) + #names - 1)
      records[#names] = call('HGET', STATE, name)
    end
    free_held(id, names, fences, records)
    done = string.gsub(done, ';' .. number .. ' [^;]*', ';' .. number .. ' -')
  elseif not entry and tonumber(number) >= settled then
    done = done .. ';' .. number .. ' -'
  end
end
done = settle(done, tonumber(ARGV[3]))
lease.nominal = clock + lease.ttl
lease.expires = lease.nominal
call('ZADD', DUE, int(lease.expires), 'lease/' .. id)
commit('lease/' .. id, lease_record(lease), 'done/' .. id, done)
return {'RENEWED', backlog and 1 or 0}
