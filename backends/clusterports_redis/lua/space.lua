-- The rules of one space, shared by all operations; clusterports/_space.py says the same in Python and explains it.
--
-- KEYS, of every operation: 1 state (hash)  2 due (zset)  3 ports (zset, by lex)  4 tcp  5 udp (bitmaps)
--   state  schema, clock, seen, fence, min_ttl (of live leases, 0: none; never too high)
--          lease/<id>       incarnation ttl nominal expires token instance
--          done/<id>        floor;number since fence port port ...;number -  (the last: abandoned)
--          name/<instance>  id of the lease under this name
--          tcp/<port>       h lease fence since quarantine note     (held)
--                           c lease fence since until note          (cooling)
--   due    lease/<id> by expiry and tcp/<port> by the end of its cooling, on the lease clock
--   ports  <id>/tcp/<port> for each held port and lease/<id> for each lease: found without a scan
--   tcp    bit n is 1 while port n is not free; 65,536 bits long from the start, so that BITPOS finds zeros
-- All numbers are integers, times in microseconds. An instance and a note are ASCII JSON, made by the client.
-- Errors, of every operation: CPSCHEMA when the data is of another version, CPDAMAGED when keys contradict
-- each other; nothing of the operation was done then.

local STATE, DUE, PORTS = KEYS[1], KEYS[2], KEYS[3]
local BITS = {tcp = KEYS[4], udp = KEYS[5]}
local SCHEMA, STEP, MAX_GAP, CHUNK = '1', 64, 3600000000, 1000
local call = redis.call
local now = store_time()
local clock, fence, min_ttl

local function int(number)
  return string.format('%.0f', number)
end

local function damaged(what)
  error('CPDAMAGED ' .. what, 0)
end

-- call() over a long list, in chunks that unpack() can take.
local function each(command, key, items)
  for i = 1, #items, CHUNK do
    call(command, key, unpack(items, i, math.min(i + CHUNK - 1, #items)))
  end
end

-- A lease's record; false when there is none.
local function parse_lease(record)
  if not record then return false end
  local incarnation, ttl, nominal, expires, token, instance = string.match(record, '^(%d+) (%d+) (%d+) (%d+) (%x+) (.*)$')
  if not incarnation then damaged('lease ' .. record) end
  return {incarnation = incarnation, ttl = tonumber(ttl), nominal = tonumber(nominal), expires = tonumber(expires),
          token = token, instance = instance}
end

local function lease_record(lease)
  return string.format('%s %.0f %.0f %.0f %s %s', lease.incarnation, lease.ttl, lease.nominal, lease.expires,
                       lease.token, lease.instance)
end

local function bit_of(name, value)
  local protocol, number = string.match(name, '^(%l+)/0*(%d+)$')
  call('SETBIT', BITS[protocol], number, value)
end

local function held_by(id, limit)
  return call('ZRANGE', PORTS, '[' .. id .. '/', '(' .. id .. '0', 'BYLEX', 'LIMIT', 0, limit)
end

local function name_of(id, member)
  return string.sub(member, #id + 2)
end

-- Ports that nobody holds any more, cooling or just released, become free.
local function free(names)
  if #names == 0 then return end
  for _, name in ipairs(names) do bit_of(name, 0) end
  each('HDEL', STATE, names)
end

-- Held ports of a lease (members of PORTS, at most STEP) begin to cool.
local function cool(id, members, start)
  if #members == 0 then return end
  local names, due, fields = {}, {}, {}
  for i, member in ipairs(members) do names[i] = name_of(id, member) end
  for i, record in ipairs(call('HMGET', STATE, unpack(names))) do
    local head, quarantine, note = string.match(record or '', '^h (%d+ %d+ %d+) (%d+) (.*)$')
    if not head then damaged('port ' .. names[i]) end
    local till = int(start + tonumber(quarantine))
    due[2 * i - 1], due[2 * i] = till, names[i]
    fields[2 * i - 1], fields[2 * i] = names[i], 'c ' .. head .. ' ' .. till .. ' ' .. note
  end
  call('ZADD', DUE, unpack(due))
  call('ZREM', PORTS, unpack(members))
  call('HSET', STATE, unpack(fields))
end

local function drop(id, lease)
  call('ZREM', DUE, 'lease/' .. id)
  call('ZREM', PORTS, 'lease/' .. id)
  call('HDEL', STATE, 'lease/' .. id, 'done/' .. id)
  if call('HGET', STATE, 'name/' .. lease.instance) == id then call('HDEL', STATE, 'name/' .. lease.instance) end
end

local function due_now(limit)
  return call('ZRANGE', DUE, '-inf', int(clock), 'BYSCORE', 'LIMIT', 0, limit)
end

-- Reclaim at most STEP of what is due; true when more is due still.
local function reclaim(due)
  local budget = STEP
  while #due > 0 do
    local cooled = {}
    for _, name in ipairs(due) do
      if budget == 0 then break end
      local id = string.match(name, '^lease/(%d+)$')
      if id then
        local lease = parse_lease(call('HGET', STATE, name))
        if not lease then damaged(name) end
        local members = held_by(id, budget)
        cool(id, members, lease.nominal)
        budget = budget - #members
        if budget > 0 then
          drop(id, lease)
          budget = budget - 1
        end
      else
        cooled[#cooled + 1] = name
        budget = budget - 1
      end
    end
    free(cooled)
    each('ZREM', DUE, cooled)
    if budget == 0 then return #due_now(1) > 0 end
    due = due_now(budget)
  end
  return false
end

-- After a silence longer than a third of its TTL, a lease gets one full TTL, once between two renewals.
local function grace(before, gap)
  min_ttl = 0
  for _, name in ipairs(call('ZRANGE', PORTS, '[lease/', '(lease0', 'BYLEX')) do
    local lease = parse_lease(call('HGET', STATE, name))
    if not lease then damaged(name) end
    if lease.expires > before then
      if gap * 3 > lease.ttl and lease.expires == lease.nominal then
        lease.expires = clock + lease.ttl
        call('ZADD', DUE, int(lease.expires), name)
        call('HSET', STATE, name, lease_record(lease))
      end
      if min_ttl == 0 or lease.ttl < min_ttl then min_ttl = lease.ttl end
    end
  end
end

-- Reads the space and the fields asked for; nil when there is no such space.
local function load(...)
  local s = call('HMGET', STATE, 'schema', 'clock', 'seen', 'fence', 'min_ttl', ...)
  if not s[1] then
    if call('EXISTS', DUE, PORTS, BITS.tcp, BITS.udp) > 0 then damaged('state is missing') end
    return nil
  end
  if s[1] ~= SCHEMA then error('CPSCHEMA ' .. s[1], 0) end
  if not (s[2] and s[3] and s[4] and s[5]) then damaged('state is incomplete') end
  clock, fence, min_ttl = tonumber(s[2]), tonumber(s[4]), tonumber(s[5])
  return s
end

local function clock_at(seen)
  local gap = now - seen
  if gap > MAX_GAP then return clock + MAX_GAP, gap end
  if gap > 0 then return clock + gap, gap end
  return clock, gap
end

-- A visit: the clock advances, what is due is reclaimed. Returns whether more is due, and whether leases may
-- have changed since load().
local function visit(s)
  local before, gap = clock, 0
  clock, gap = clock_at(tonumber(s[3]))
  local silent = min_ttl > 0 and gap * 3 > min_ttl
  if silent then grace(before, gap) end
  local due = due_now(STEP)
  if #due == 0 then return false, silent end
  return reclaim(due), true
end

-- The last write of every operation.
local function commit(...)
  call('HSET', STATE, 'clock', int(clock), 'seen', int(now), 'fence', int(fence), 'min_ttl', int(min_ttl), ...)
end

local function next_fence(count)
  local first = math.max(fence + 1, now)
  fence = first + count - 1
  return first
end

-- The lease that the caller proved, or nil and the refusal.
local function live(record, incarnation)
  local lease = parse_lease(record)
  if not lease or lease.expires <= clock then return nil, {'GONE', 'expired'} end
  if lease.incarnation ~= incarnation then return nil, {'GONE', 'superseded'} end
  return lease
end

-- load(), visit() and live() in one: how all operations of a holder begin. Returns lease, s, backlog; or nil and the refusal.
local function enter(id, incarnation, ...)
  local s = load('lease/' .. id, ...)
  if not s then return nil, {'GONE', 'expired'} end
  local backlog, changed = visit(s)
  local record = s[6]
  if changed then record = call('HGET', STATE, 'lease/' .. id) end
  local lease, refusal = live(record, incarnation)
  if not lease then
    commit()
    return nil, refusal
  end
  return lease, s, backlog
end

local function settle(done, floor)
  if floor <= tonumber(string.match(done, '^%d+')) then return done end
  local kept = {int(floor)}
  for number, entry in string.gmatch(done, ';(%d+) ([^;]*)') do
    if tonumber(number) >= floor then kept[#kept + 1] = number .. ' ' .. entry end
  end
  return table.concat(kept, ';')
end

-- Frees those of these ports that the lease holds with this very fence (S2). records: of names, as read.
local function free_held(id, names, fences, records)
  local mine, members = {}, {}
  for i, name in ipairs(names) do
    local lease, its_fence = string.match(records[i] or '', '^h (%d+) (%d+) ')
    if lease == id and its_fence == fences[i] then
      records[i] = false
      mine[#mine + 1] = name
      members[#members + 1] = id .. '/' .. name
    end
  end
  each('ZREM', PORTS, members)
  free(mine)
  return #mine
end
