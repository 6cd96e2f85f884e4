-- The store's own time in microseconds. Read once per script: TIME is live inside a script on Redis 7.0 and
-- frozen on newer servers.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
