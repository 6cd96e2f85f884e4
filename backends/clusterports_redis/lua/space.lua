-- The rules of one space, shared by all operations; clusterports/_space.py says the same in Python and explains it.
--
-- KEYS, of every operation: 1 state (hash)  2 due (zset)  3 ports (zset, by lex)  4 tcp  5 udp (bitmaps)
--       the last: events (stream), of those that write any
--   state  schema, clock, seen, fence
--          born             the first fence of this space; one that is lower was given by another, which is lost
--          ended            id;id;...: those of the last 64 leases that ended, the latest at the end
--          recover          until then on the lease clock nothing is given out
--          min_ttl          of live leases, 0: none; never too high
--          next             when something is due first, on the lease clock; never too late
--          lease/<id>       incarnation expires nominal ttl token instance
--          done/<id>        floor highest;number since fence port port ...;number w<ticket>;number -
--                           (queued; full or abandoned)
--          name/<instance>  id of the lease under this name
--          tcp/<port>       h lease fence since hold note           (held; hold: see pick.lua)
--                           c lease fence since until note          (cooling)
--                           f lease fence since until,range note    (foreign)
--          last/<range>     the number last given to an ask with rotate
--          owned/<tag>      how many ports are held under a limit
--          foreign/<range>  how many are marked
--          revoked/<id>     fence port;fence port ...       (taken by force; the holder of the lease does not know yet)
--          wait/<ticket>    lease protocol first last first last ...    (spans ascend and lie apart)
--   due    lease/<id> by expiry, tcp/<port> by the end of its cooling or mark, wait/<ticket> by the end of its window;
--          on the lease clock
--   ports  <id>/tcp/<port> for each held port, lease/<id> for each lease, wait/<ticket> for each place in the queue:
--          found without a scan
--          All the same with udp/ and both/ for tcp/. Tickets have 16 digits, so that they sort as numbers.
--   events the last things that steps did, for people: nothing is decided by them. Each entry has one field:
--          kind time port record    (record: as in the state, then, but brief; of a refusal, with 0 for port, fence
--                                    and times)
--   tcp    bit n is 1 while port n is not free; 65,536 bits long from the start, so that BITPOS finds zeros
-- All numbers are integers, times in microseconds. An instance and a note are ASCII JSON, made by the client.
-- Errors, of every operation: CPSCHEMA when the data is of another version, CPDAMAGED when keys contradict
-- each other; nothing of the operation was done then.
--
-- A script pays for every function and table that it makes, each time it runs. So what is rarely needed is made
-- by rare(), and what every operation does stands in time.lua and enter.lua as plain code. While anybody waits, or
-- the space is recovering, `next` is 0: then every operation takes the way over rare(), which looks after both.

local call, format, match = redis.call, string.format, string.match
local STATE, DUE, PORTS = KEYS[1], KEYS[2], KEYS[3]
local clock, seen, fence, min_ttl, next_due

-- It uses no local of the script around it, which would cost something even where it is not called: what it needs
-- is handed in, and what it changes, self.min_ttl and self.next_due, is to be written by the caller.
local function rare(clock, min_ttl, next_due, now)
  local call, format, match = redis.call, string.format, string.match
  local STATE, DUE, PORTS = KEYS[1], KEYS[2], KEYS[3]
  local STEP, NEVER, CHUNK = 64, 9007199254740991, 1000
  local bits = {tcp = KEYS[4], udp = KEYS[5]}
  local self = {min_ttl = min_ttl, next_due = next_due, STEP = STEP}
  self.KINDS = {tcp = {'tcp'}, udp = {'udp'}, both = {'tcp', 'udp'}}
  self.OVER = {tcp = {'tcp', 'both'}, udp = {'udp', 'both'}, both = {'both', 'tcp', 'udp'}}

  function self.damaged(what)
    error('CPDAMAGED ' .. what, 0)
  end

  -- Write down what was done. Where that fails, as for a user who may not, the step stands all the same. A line that
  -- ends in -- events is not there where none are kept.
  local at, mute  -- events
  function self.tell(kind, name, record)  -- events
    if mute then return end  -- events
    at = at or format(' %.0f ', now)  -- events
    local text = kind .. at .. name .. ' ' .. self.brief(record)  -- events
    local done = redis.pcall('XADD', KEYS[#KEYS], 'MAXLEN', '~', '$events', '*', 'e', text)  -- events
    mute = type(done) == 'table' and done.err  -- events
  end  -- events

  -- The note of an event: of a long owner only the beginning, and no labels that are long together. Else the log of one
  -- port might be larger than all else that the space keeps. Emulators have no cjson.
  local function shorten(note)  -- events
    local about, size, text, cut = cjson.decode(note), 0, cjson.encode, 512  -- events
    for key, value in pairs(about.l) do size = size + #key + #value end  -- events
    local next = string.byte(about.o, cut + 1)  -- events
    while next and next >= 128 and next < 192 do  -- events
      cut = cut - 1  -- events
      next = string.byte(about.o, cut + 1)  -- events
    end  -- events
    return '{"i":' .. text(about.i) .. ',"l":' .. (size > 512 and '{}' or text(about.l)) .. ',"o":'  -- events
           .. text(string.sub(about.o, 1, cut)) .. ',"r":' .. text(about.r)  -- events
           .. (about.h and ',"h":' .. text(about.h) or '') .. '}'  -- events
  end  -- events

  function self.brief(record)  -- events
    if #record <= 512 then return record end  -- events
    local head, note = match(record, '^(%l %d+ %d+ %d+ %S+ )(.*)$')  -- events
    local known, brief = pcall(shorten, note)  -- events
    return known and head .. brief or record  -- events
  end  -- events

  function self.tell_all(kind, names, records)  -- events
    for i = math.max(1, #names - $events + 1), #names do  -- events
      if records[i] then self.tell(kind, names[i], records[i]) end  -- events
    end  -- events
  end  -- events

  -- Why there is no such lease, as a reply: incarnation and expires are of the one that there is.
  function self.gone(id, asked, incarnation, expires, fence)
    local function reply(reason, forgotten) return {'GONE', reason, forgotten and 1 or 0} end
    if not expires then
      local number = tonumber(id)
      if string.find(';' .. (call('HGET', STATE, 'ended') or '') .. ';', ';' .. id .. ';', 1, true) then
        return reply('expired')
      end
      local known = number <= fence and number >= tonumber(call('HGET', STATE, 'born') or 0)
      return reply(known and 'expired' or 'unknown', known)
    end
    if tonumber(expires) <= clock then return reply('expired') end
    return reply(tonumber(asked) < tonumber(incarnation) and 'superseded' or 'unknown')  -- unknown: the takeover was lost
  end

  -- Until then nothing is given out; nil when there is no such time, or it is over. before: the clock at the last visit,
  -- where this one is not done yet: of a silence only a third of a TTL counts.
  function self.recovers(before)
    local till = tonumber(call('HGET', STATE, 'recover') or 0)
    if before and before < till then
      local least
      for _, name in ipairs(call('ZRANGE', PORTS, '[lease/', '(lease0', 'BYLEX')) do
        local lease = self.lease(call('HGET', STATE, name))
        if lease and lease.expires > before and not (least and least < lease.ttl) then least = lease.ttl end
      end
      if least and (clock - before) * 3 > least then till = till + clock - before - math.floor(least / 3) end
    end
    return clock < till and till or nil
  end

  function self.recover(till)
    if till > tonumber(call('HGET', STATE, 'recover') or 0) then call('HSET', STATE, 'recover', till) end
    self.next_due = 0
  end

  -- A key of a wrong type must be found before the first write, not between two. Returns whether the bitmaps are whole.
  function self.check_types()
    local tcp, udp = call('STRLEN', KEYS[4]), call('STRLEN', KEYS[5])
    call('ZCARD', PORTS)
    call('ZCARD', DUE)
    return tcp == 8192 and udp == 8192
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

  -- One call for many bits of a bitmap, one part of it for neighbours, and words, not numbers, where it can be:
  -- redis.call takes long to write a number. value: 1 or 0.
  function self.set_bits(kind, numbers, value)
    local words, at, i = {}, 0, 1
    while i <= #numbers do
      local size = 1
      while size < 32 and numbers[i + size] == numbers[i] + size do size = size + 1 end
      words[at + 1], words[at + 2], words[at + 3] = 'SET', 'u' .. size, numbers[i]
      words[at + 4] = value == 0 and '0' or size == 1 and '1' or 2 ^ size - 1
      at, i = at + 4, i + size
    end
    self.each('BITFIELD', bits[kind], words)
  end

  function self.clear_bits(names)
    local numbers = {tcp = {}, udp = {}}
    for _, name in ipairs(names) do
      local protocol, number = match(name, '^(%l+)/(%d+)$')
      for _, kind in ipairs(self.KINDS[protocol]) do numbers[kind][#numbers[kind] + 1] = tonumber(number) end
    end
    self.set_bits('tcp', numbers.tcp, 0)
    self.set_bits('udp', numbers.udp, 0)
  end

  -- HMGET over a list of any length.
  function self.records(names)
    local records = {}
    for i = 1, #names, CHUNK do
      for k, record in ipairs(call('HMGET', STATE, unpack(names, i, math.min(i + CHUNK - 1, #names)))) do
        records[i + k - 1] = record
      end
    end
    return records
  end

  -- Ports that are no longer held under a limit, or no longer marked, are not counted any more.
  function self.count_down(records)
    local counts = {}
    for _, record in ipairs(records) do
      local tag = match(record or '', '^h %d+ %d+ %d+ %d+,%d+,(%S+)')
      local range = match(record or '', '^f %d+ %d+ %d+ %d+,(%S*) ')
      local name = tag and tag ~= '-' and 'owned/' .. tag or range and 'foreign/' .. range
      if name then counts[name] = (counts[name] or 0) + 1 end
    end
    for name, count in pairs(counts) do
      local left = (tonumber(call('HGET', STATE, name)) or 0) - count
      if left > 0 then call('HSET', STATE, name, left) else call('HDEL', STATE, name) end
    end
  end

  -- Ports that nobody holds any more, cooling, marked or just released, become free. records: of names, as read.
  function self.free(names, records)
    if #names == 0 then return end
    self.count_down(records)
    self.clear_bits(names)
    self.each('HDEL', STATE, names)
    self.changed = true
  end

  -- A lease holds these ports no longer; what they are from now on is for the caller to write.
  function self.end_hold(id, names)
    local members = {}
    for i, name in ipairs(names) do members[i] = id .. '/' .. name end
    self.each('ZREM', PORTS, members)
  end

  -- Held ports of a lease begin to cool. period: of 'hold', 1 the quarantine, 2 the cooldown.
  function self.cool(id, names, records, start, period)
    if #names == 0 then return end
    local fields, tills = {}, {}
    for i, record in ipairs(records) do
      local its_lease, rest, hold, note = match(record or '', '^h (%d+) (%d+ %d+) (%S+) (.*)$')
      local time = match(hold or '', period == 1 and '^(%d+)' or '^%d+,(%d+)')
      if its_lease ~= id or not time then self.damaged('port ' .. names[i]) end
      tills[i] = start + time
      fields[2 * i - 1] = names[i]
      fields[2 * i] = format('c %s %s %.0f %s', id, rest, tills[i], note)
    end
    for i, till in ipairs(tills) do self.put_due(names[i], till) end
    self.count_down(records)
    self.end_hold(id, names)
    self.each('HSET', STATE, fields)
  end

  -- A clean release of held ports: free, or cooling for their cooldown.
  function self.let_go(id, names, records)
    local free, free_records, cool, cool_records = {}, {}, {}, {}
    for i, name in ipairs(names) do
      if match(records[i], '^h %d+ %d+ %d+ %d+,[1-9]') then
        cool[#cool + 1], cool_records[#cool + 1] = name, records[i]
      else
        free[#free + 1], free_records[#free + 1] = name, records[i]
      end
    end
    self.end_hold(id, free)
    self.free(free, free_records)
    self.cool(id, cool, cool_records, clock, 2)
    self.tell_all('released', names, records)  -- events
  end

  -- What a holder's ask takes away: foreign marks, and what cools for the very job that runs on it.
  function self.evict(names)
    self.each('ZREM', DUE, names)
    self.free(names, self.records(names))
  end

  -- The ports that are in the way of one: records by name.
  function self.in_the_way(protocol, number)
    local found = {}
    for _, kind in ipairs(self.OVER[protocol]) do
      local name = format('%s/%05d', kind, number)
      found[name] = call('HGET', STATE, name) or nil
    end
    return found
  end

  -- Who has a port: its lease, as a table. What is damaged is found here.
  function self.holder_of(name, record)
    local state, lease, its_fence = match(record, '^([hcf]) (%d+) (%d+) ')
    local holder = state == 'h' and self.lease(call('HGET', STATE, 'lease/' .. lease))
    if not state or state == 'h' and not holder then self.damaged('port ' .. name) end
    return holder, its_fence
  end

  -- A port that the store has lost becomes the lease's again, unless somebody was given a higher fence since, or it was
  -- taken by force. Returns whether it was lost. counter: where it is counted, '' if it is not.
  function self.take_back(id, instance, name, its_fence, hold, note, counter)
    local protocol, number = match(name, '^(%l+)/(%d+)$')
    local fence, found = tonumber(its_fence), self.in_the_way(protocol, number)
    local names, records = {}, {}
    local own_lease, own_fence = match(found[name] or '', '^h (%d+) (%d+) ')
    local lost = not (own_lease == id and own_fence == its_fence)
    local revoked = ';' .. (call('HGET', STATE, 'revoked/' .. id) or '') .. ';'
    if lost and string.find(revoked, ';' .. its_fence .. ' ' .. name .. ';', 1, true) then return false end
    for _, kind in ipairs(lost and self.OVER[protocol] or {}) do
      local other = format('%s/%05d', kind, number)
      if found[other] then
        local holder, other_fence = self.holder_of(other, found[other])
        -- A mark of something foreign may be of this very holder's job.
        if tonumber(other_fence) > fence and not match(found[other], '^f') then return true end
        if other_fence == its_fence and holder and holder.instance ~= instance then return true end
        names[#names + 1], records[#names + 1] = other, found[other]
      end
    end
    for i, other in ipairs(names) do
      local state, lease, other_fence = match(records[i], '^(%l) (%d+) (%d+) ')
      if state ~= 'h' then
        call('ZREM', DUE, other)
      else
        self.end_hold(lease, {other})
        if lease ~= id then
          local told = call('HGET', STATE, 'revoked/' .. lease)
          call('HSET', STATE, 'revoked/' .. lease, (told and told .. ';' or '') .. other_fence .. ' ' .. other)
          self.tell('forced', other, records[i])  -- events
        end
      end
    end
    self.free(names, records)
    call('ZADD', PORTS, 0, id .. '/' .. name)
    for _, kind in ipairs(self.KINDS[protocol]) do call('SETBIT', bits[kind], tonumber(number), 1) end
    if not lost then return false end
    local record = format('h %s %s %.0f %s %s', id, its_fence, math.min(fence, now), hold, note)
    call('HSET', STATE, name, record)
    self.tell('recovered', name, record)  -- events
    if counter ~= '' then call('HSET', STATE, counter, (tonumber(call('HGET', STATE, counter)) or 0) + 1) end
    return true
  end

  -- ---------------------------------------------------------------- queue

  function self.tickets(before, limit)
    local found = call('ZRANGE', PORTS, '[wait/', before and '(wait/' .. before or '(wait0', 'BYLEX', 'LIMIT', 0,
                       limit or -1)
    for i, name in ipairs(found) do found[i] = string.sub(name, 6) end
    return found
  end

  function self.place_name(ticket)
    return format('wait/%016.0f', tonumber(ticket))
  end

  -- The lease whose place it is, if it is one.
  function self.place_of(ticket)
    local record = call('HGET', STATE, self.place_name(ticket))
    return record and (match(record, '^(%d+) ') or self.damaged('wait/' .. ticket))
  end

  -- Of each ticket, the lease and what it waits for; nothing of one that is no place.
  function self.places(tickets)
    local fields, places = {}, {}
    for i, ticket in ipairs(tickets) do fields[i] = 'wait/' .. ticket end
    for i, record in ipairs(self.records(fields)) do
      local lease, wanted = match(record or '', '^(%d+) (%l+.*)$')
      places[i] = {lease = lease, wanted = wanted}
    end
    return places
  end

  -- The answer to one who waits.
  function self.queued(ticket, first)
    local due = call('ZRANGE', DUE, 0, 0, 'WITHSCORES')
    return {'QUEUED', ticket, first and 1 or 0, format('%.0f', tonumber(due[2]) - clock)}
  end

  -- What those with these tickets wait for: each thing once, with the ticket of the first.
  function self.wanted(tickets)
    local seen, found = {}, {}
    for i, place in ipairs(self.places(tickets)) do
      if not place.wanted then self.damaged('wait/' .. tickets[i]) end
      if not seen[place.wanted] then
        seen[place.wanted] = true
        found[#found + 1] = {ticket = tickets[i], wanted = place.wanted}
      end
    end
    return found
  end

  function self.enter_queue(ticket, id, wanted, till)
    local name = self.place_name(ticket)
    call('ZADD', PORTS, 0, name)
    self.put_due(name, till)
    call('HSET', STATE, name, id .. ' ' .. wanted)
    self.waiting = true
  end

  function self.leave(ticket)
    local name = self.place_name(ticket)
    call('ZREM', PORTS, name)
    call('ZREM', DUE, name)
    if call('HDEL', STATE, name) == 1 then self.changed = true end
  end

  -- Tell those of the first in the queue who wait for different things. Only a hint: a user who may not publish
  -- has waiters that find out by themselves.
  function self.wake()
    if not (self.waiting and self.changed) then return end
    for _, head in ipairs(self.wanted(self.tickets(nil, 64))) do
      redis.pcall('PUBLISH', match(STATE, '^(.*):state$') .. ':wake:' .. head.ticket, '')
    end
  end

  function self.drop(id, lease)
    call('ZREM', DUE, 'lease/' .. id)
    call('ZREM', PORTS, 'lease/' .. id)
    call('HDEL', STATE, 'lease/' .. id, 'done/' .. id, 'revoked/' .. id)
    if call('HGET', STATE, 'name/' .. lease.instance) == id then call('HDEL', STATE, 'name/' .. lease.instance) end
    local ended, kept = call('HGET', STATE, 'ended'), {}
    for one in string.gmatch(ended or '', '%d+') do kept[#kept + 1] = one end
    kept[#kept + 1] = id
    call('HSET', STATE, 'ended', table.concat(kept, ';', math.max(1, #kept - 63)))
    local tickets = self.tickets()
    for i, place in ipairs(self.places(tickets)) do
      if place.lease == id then self.leave(tickets[i]) end
    end
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
          if not lease or lease.expires > clock then self.damaged(name) end
          local names = self.names(id, self.held_by(id, budget))
          local records = self.records(names)
          self.cool(id, names, records, lease.nominal, 1)
          self.tell_all('expired', names, records)  -- events
          budget = budget - #names
          if budget > 0 then
            self.drop(id, lease)
            budget = budget - 1
          end
        else
          local ticket = match(name, '^wait/(%d+)$')
          if ticket then self.leave(ticket) else cooled[#cooled + 1] = name end
          budget = budget - 1
        end
      end
      local records = self.records(cooled)
      for i, record in ipairs(records) do
        local till = tonumber(match(record or '', '^[cf] %d+ %d+ %d+ (%d+)'))
        if record and not (till and till <= clock) then self.damaged('port ' .. cooled[i]) end
      end
      self.free(cooled, records)
      self.each('ZREM', DUE, cooled)
      self.tell_all('reclaimed', cooled, records)  -- events
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
    self.recovering = self.recovers(before)
    if self.recovering then call('HSET', STATE, 'recover', self.recovering) end
    if self.min_ttl > 0 and gap * 3 > self.min_ttl then self.grace(before, gap) end
    local backlog = self.reclaim()
    local first = call('ZRANGE', DUE, 0, 0, 'WITHSCORES')
    self.next_due = tonumber(first[2] or NEVER)
    self.waiting = #self.tickets(nil, 1) > 0
    if self.waiting then
      self.next_due = 0
      self.wake()
      self.changed = false
    end
    if self.recovering then self.next_due = 0 end
    call('HSET', STATE, 'min_ttl', self.min_ttl, 'next', self.next_due)
    return backlog
  end

  -- Those of these ports that the lease holds with this very fence (S2): their names and records.
  function self.held(id, names, fences)
    local mine, its_records, counted = {}, {}, {}
    for i, record in ipairs(self.records(names)) do
      local lease, its_fence = match(record or '', '^h (%d+) (%d+) ')
      if lease == id and its_fence == fences[i] and not counted[names[i]] then
        counted[names[i]] = true
        mine[#mine + 1], its_records[#mine + 1] = names[i], record
      end
    end
    return mine, its_records
  end

  -- The same of those that the arguments name from here on, each with its fence.
  function self.held_of_arguments(id, at)
    local names, fences = {}, {}
    for i = at, #ARGV, 2 do
      names[#names + 1] = ARGV[i]
      fences[#names] = ARGV[i + 1]
    end
    return self.held(id, names, fences)
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
