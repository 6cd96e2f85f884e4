-- The rules of one space, shared by all operations; clusterports/_space.py says the same in Python and explains it.
--
-- KEYS, of every operation: 1 state (hash)  2 due (zset)  3 ports (zset, by lex)  4 tcp  5 udp (bitmaps)
--   state  schema, clock, seen, fence
--          min_ttl          of live leases, 0: none; never too high
--          next             when something is due first, on the lease clock; never too late
--          lease/<id>       incarnation expires nominal ttl token instance
--          done/<id>        floor highest;number since fence port port ...;number -    (the last: full or abandoned)
--          name/<instance>  id of the lease under this name
--          tcp/<port>       h lease fence since quarantine note     (held)
--                           c lease fence since until note          (cooling)
--   due    lease/<id> by expiry and tcp/<port> by the end of its cooling, on the lease clock
--   ports  <id>/tcp/<port> for each held port and lease/<id> for each lease: found without a scan
--   tcp    bit n is 1 while port n is not free; 65,536 bits long from the start, so that BITPOS finds zeros
-- All numbers are integers, times in microseconds. An instance and a note are ASCII JSON, made by the client.
-- Errors, of every operation: CPSCHEMA when the data is of another version, CPDAMAGED when keys contradict
-- each other; nothing of the operation was done then.
--
-- A script pays for every function and table that it makes, each time it runs. So what is rarely needed is made
-- by rare(), and what every operation does stands in time.lua and enter.lua as plain code.

local call, format, match = redis.call, string.format, string.match
local STATE, DUE, PORTS = KEYS[1], KEYS[2], KEYS[3]
local clock, seen, fence, min_ttl, next_due

-- It uses no local of the script around it, which would cost something even where it is not called: what it needs
-- is handed in, and what it changes, self.min_ttl and self.next_due, is to be written by the caller.
local function rare(clock, min_ttl, next_due)
  local call, format, match = redis.call, string.format, string.match
  local STATE, DUE, PORTS = KEYS[1], KEYS[2], KEYS[3]
  local STEP, NEVER, CHUNK = 64, 9007199254740991, 1000
  local self = {bits = {tcp = KEYS[4], udp = KEYS[5]}, min_ttl = min_ttl, next_due = next_due, STEP = STEP}

  function self.damaged(what)
    error('CPDAMAGED ' .. what, 0)
  end

  -- A key of a wrong type must be found before the first write, not between two.
  function self.check_types()
    call('STRLEN', KEYS[4])
    call('STRLEN', KEYS[5])
    call('ZCARD', PORTS)
    call('ZCARD', DUE)
  end

  -- What a state without the right schema means: no space yet, or not ours to touch.
  function self.unknown(schema)
    if schema then error('CPSCHEMA ' .. schema, 0) end
    if call('EXISTS', DUE, PORTS, KEYS[4], KEYS[5]) > 0 then self.damaged('state is missing') end
  end

  -- call() over a long list, in chunks that unpack() can take.
  function self.each(command, key, items)
    for i = 1, #items, CHUNK do
      call(command, key, unpack(items, i, math.min(i + CHUNK - 1, #items)))
    end
  end

  function self.lease(record)
    if not record then return nil end
    local incarnation, expires, nominal, ttl, token, instance = match(record, '^(%d+) (%d+) (%d+) (%d+) (%x+) (.*)$')
    if not incarnation then self.damaged('lease ' .. record) end
    return {incarnation = incarnation, expires = tonumber(expires), nominal = tonumber(nominal), ttl = tonumber(ttl),
            token = token, instance = instance}
  end

  function self.record(lease)
    return format('%s %.0f %.0f %.0f %s %s', lease.incarnation, lease.expires, lease.nominal, lease.ttl, lease.token,
                  lease.instance)
  end

  function self.put_due(name, at)
    call('ZADD', DUE, at, name)
    if at < self.next_due then self.next_due = at end
  end

  function self.held_by(id, limit)
    return call('ZRANGE', PORTS, '[' .. id .. '/', '(' .. id .. '0', 'BYLEX', 'LIMIT', 0, limit)
  end

  function self.names(id, members)
    local names = {}
    for i, member in ipairs(members) do names[i] = string.sub(member, #id + 2) end
    return names
  end

  function self.bit(name, value)
    call('SETBIT', self.bits[string.sub(name, 1, 3)], tonumber(string.sub(name, 5)), value)
  end

  -- Ports that nobody holds any more, cooling or just released, become free.
  function self.free(names)
    for _, name in ipairs(names) do self.bit(name, 0) end
    self.each('HDEL', STATE, names)
  end

  -- Held ports of a lease (members of PORTS, at most STEP) begin to cool.
  function self.cool(id, members, start)
    if #members == 0 then return end
    local names, fields = self.names(id, members), {}
    for i, record in ipairs(call('HMGET', STATE, unpack(names))) do
      local head, quarantine, note = match(record or '', '^h (%d+ %d+ %d+) (%d+) (.*)$')
      if not head then self.damaged('port ' .. names[i]) end
      local till = start + quarantine
      self.put_due(names[i], till)
      fields[2 * i - 1] = names[i]
      fields[2 * i] = format('c %s %.0f %s', head, till, note)
    end
    call('ZREM', PORTS, unpack(members))
    call('HSET', STATE, unpack(fields))
  end

  function self.drop(id, lease)
    call('ZREM', DUE, 'lease/' .. id)
    call('ZREM', PORTS, 'lease/' .. id)
    call('HDEL', STATE, 'lease/' .. id, 'done/' .. id)
    if call('HGET', STATE, 'name/' .. lease.instance) == id then call('HDEL', STATE, 'name/' .. lease.instance) end
  end

  function self.due(limit)
    return call('ZRANGE', DUE, '-inf', clock, 'BYSCORE', 'LIMIT', 0, limit)
  end

  -- Reclaim at most STEP of what is due; true when more is due still.
  function self.reclaim()
    local budget = STEP
    local due = self.due(budget)
    while #due > 0 do
      local cooled = {}
      for _, name in ipairs(due) do
        if budget == 0 then break end
        local id = match(name, '^lease/(%d+)$')
        if id then
          local lease = self.lease(call('HGET', STATE, name))
          if not lease then self.damaged(name) end
          local members = self.held_by(id, budget)
          self.cool(id, members, lease.nominal)
          budget = budget - #members
          if budget > 0 then
            self.drop(id, lease)
            budget = budget - 1
          end
        else
          cooled[#cooled + 1] = name
          budget = budget - 1
        end
      end
      self.free(cooled)
      self.each('ZREM', DUE, cooled)
      if budget == 0 then return #self.due(1) > 0 end
      due = self.due(budget)
    end
    return false
  end

  -- After a silence longer than a third of its TTL, a lease gets one full TTL, once between two renewals.
  function self.grace(before, gap)
    self.min_ttl = 0
    for _, name in ipairs(call('ZRANGE', PORTS, '[lease/', '(lease0', 'BYLEX')) do
      local lease = self.lease(call('HGET', STATE, name))
      if not lease then self.damaged(name) end
      if lease.expires > before then
        if gap * 3 > lease.ttl and lease.expires == lease.nominal then
          lease.expires = clock + lease.ttl
          self.put_due(name, lease.expires)
          call('HSET', STATE, name, self.record(lease))
        end
        if self.min_ttl == 0 or lease.ttl < self.min_ttl then self.min_ttl = lease.ttl end
      end
    end
  end

  -- The part of a visit that is seldom needed. Returns whether more is due.
  function self.visit(before, gap)
    self.check_types()
    if self.min_ttl > 0 and gap * 3 > self.min_ttl then self.grace(before, gap) end
    local backlog = self.reclaim()
    local first = call('ZRANGE', DUE, 0, 0, 'WITHSCORES')
    self.next_due = tonumber(first[2] or NEVER)
    call('HSET', STATE, 'min_ttl', self.min_ttl, 'next', self.next_due)
    return backlog
  end

  -- Frees those of these ports that the lease holds with this very fence (S2). records: of names, as read.
  function self.free_held(id, names, fences, records)
    local mine, members, counted = {}, {}, {}
    for i, name in ipairs(names) do
      local lease, its_fence = match(records[i] or '', '^h (%d+) (%d+) ')
      if lease == id and its_fence == fences[i] and not counted[name] then
        counted[name] = true
        mine[#mine + 1] = name
        members[#members + 1] = id .. '/' .. name
      end
    end
    self.each('ZREM', PORTS, members)
    self.free(mine)
    return #mine
  end

  -- The record of settled requests without those below the new floor; and with room for `highest`.
  function self.settle(done, floor, highest)
    local old_floor, old_highest = match(done, '^(%d+) (%d+)')
    floor, highest = math.max(floor, tonumber(old_floor)), math.max(highest, tonumber(old_highest))
    local kept = {format('%.0f %.0f', floor, highest)}
    for number, entry in string.gmatch(done, ';(%d+) ([^;]*)') do
      if tonumber(number) >= floor then kept[#kept + 1] = number .. ' ' .. entry end
    end
    return table.concat(kept, ';')
  end

  return self
end
