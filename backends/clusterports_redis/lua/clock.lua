-- The store's own time in microseconds. Read once per script: TIME is live inside a script on Redis 7.0 and
-- frozen on newer servers.
local function store_time()
  local t = redis.call('TIME')
  return t[1] * 1000000 + t[2]
end
