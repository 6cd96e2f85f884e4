-- Compares what the keys of a space say of each other, some hundred things at a time, and with `mending` puts right
-- what it finds. The records in the state are the truth. What may be in use stays closed: it is for its holder to claim,
-- or cools. `bits` and `due` follow from the records; so do the counters, which the caller adds up.
-- KEYS  see space.lua
-- ARGV  1 part: head, leases, records, ports, due, bits  2 where in it to go on, '' at first
-- Returns {'COMPARED', part and where to go on, or '' twice at the end, how much was found, {some of it, in words},
--         {counter, how many of it were seen here, ...}, {counter, its value, ...}}
local function compare(mending)
  local LAST, EXACT, LONGEST, CLOSED = 8192, 9007199254740991, 7200000000, 120000000
  local UNKNOWN = '{"i":"","l":{},"o":"","r":""}'
  local BITS = {tcp = KEYS[4], udp = KEYS[5]}
  local KINDS = {tcp = {'tcp'}, udp = {'udp'}, both = {'tcp', 'udp'}}
  local found, texts, tally, counters, budget = 0, {}, {}, {}, 500
  local clock, fence, min_ttl

  local function say(text)
    found = found + 1
    if found <= 5 then texts[found] = text end
    return mending
  end

  local function text_of(number)
    return format('%.0f', number)
  end

  local function whole(value)
    return value and match(value, '^%d+$') and tonumber(value) <= EXACT and tonumber(value) or nil
  end

  local function put(...)
    call('HSET', STATE, ...)
  end

  -- JSON as the client writes it: ASCII. Emulators have no cjson.
  local function is_json(value)
    return not match(value, '[^\32-\126]') and (not cjson or pcall(cjson.decode, value))
  end

  local function parse_lease(record)
    local incarnation, expires, nominal, ttl, token, instance =
      match(record or '', '^(%d+) (%d+) (%d+) (%d+) (%x+) (".*")$')
    if not incarnation or not is_json(instance) then return nil end
    return {incarnation = incarnation, expires = tonumber(expires), nominal = tonumber(nominal), ttl = tonumber(ttl),
            token = token, instance = instance}
  end

  local function is_lease(id)
    return parse_lease(call('HGET', STATE, 'lease/' .. id)) ~= nil
  end

  -- State, lease, fence, since, and what comes then, of a record that can be read.
  local function parse_port(record)
    local state, id, its_fence, since, rest, note = match(record or '', '^([hcf]) (%d+) (%d+) (%d+) (%S+) (.*)$')
    local shape = {h = '^%d+$', c = '^%d+$', f = '^%d+,'}
    if not state or not whole(its_fence) or not (match(rest, shape[state]) or state == 'h' and match(rest, '^%d+,%d+,%S+$')) then return nil end
    if match(note, '^{"i":".*","l":{.*},"o":".*","r":".*"}$') and is_json(note) then return state, id, its_fence, since, rest, note end
  end

  local function is_port(name)
    local kind, number = match(name, '^(%l+)/(%d%d%d%d%d)$')
    number = tonumber(number)
    return kind and KINDS[kind] and number > 0 and number < 65536 and kind, number
  end

  -- Nobody knows any more who has it, or for how long. So it cools, until whoever has it must have claimed it.
  local function close(name, id, till)
    local lease = parse_lease(call('HGET', STATE, 'lease/' .. id) or '')
    till = text_of(math.max(math.min(till, clock + LONGEST), clock + math.max(CLOSED, lease and lease.ttl or 0)))
    put(name, 'c ' .. id .. ' 0 ' .. text_of(now) .. ' ' .. till .. ' ' .. UNKNOWN)
    call('ZADD', DUE, till, name)
    call('ZREM', PORTS, id .. '/' .. name)
    local kind, number = is_port(name)
    for _, one in ipairs(KINDS[kind]) do call('SETBIT', BITS[one], number, 1) end
  end

  local function of_another_type(...)
    local reply = redis.pcall(...)
    if type(reply) ~= 'table' or not reply.err then return false end
    if not match(reply.err, 'WRONGTYPE') then error(reply.err, 0) end
    return true
  end

  local parts = {}

  function parts.head()
    if call('EXISTS', unpack(KEYS, 1, 5)) == 0 then return nil end
    local foreign = of_another_type('HEXISTS', STATE, 'schema')
    if foreign or call('EXISTS', STATE) == 0 then
      -- Nothing can be known, but that there were holders. They have time to say what they hold before anything is given
      -- out; what is made here is younger than any lease they have.
      if say(foreign and 'state is of another type' or 'state is missing') then
        call('DEL', unpack(KEYS, 1, 5))
        call('SETBIT', KEYS[4], 65535, 0)
        call('SETBIT', KEYS[5], 65535, 0)
        put('schema', '1', 'clock', 0, 'seen', text_of(now), 'fence', text_of(now), 'born', text_of(now), 'min_ttl', 0,
            'next', 0, 'recover', CLOSED)
      end
      return nil
    end
    local schema = call('HGET', STATE, 'schema')
    if schema and schema ~= '1' then error('CPSCHEMA ' .. schema, 0) end
    if not schema and say('schema is missing') then put('schema', '1') end
    local good = {}
    for _, name in ipairs({'clock', 'seen', 'fence', 'min_ttl', 'next'}) do
      good[name] = whole(call('HGET', STATE, name))
      if not good[name] then say(name .. ' is missing, or no number') end
    end
    for _, key in ipairs({{'due', 'ZCARD', DUE}, {'ports', 'ZCARD', PORTS}, {'tcp', 'STRLEN', KEYS[4]}, {'udp', 'STRLEN', KEYS[5]}}) do
      local name, command, its_key = unpack(key)
      if of_another_type(command, its_key) then
        if not say(name .. ' is of another type') then return nil end  -- nothing can be compared with it
        call('DEL', its_key)
      end
      if command == 'STRLEN' and call('STRLEN', its_key) ~= LAST and say(name .. ' is missing, or not as long as it must be') then
        call('DEL', its_key)
        call('SETBIT', its_key, 65535, 0)
      end
    end
    if not good.clock then
      -- It was at least this when the last of them renewed. So nothing runs out too early.
      local least = 0
      for _, member in ipairs(call('ZRANGE', PORTS, '[lease/', '(lease0', 'BYLEX')) do
        local lease = parse_lease(call('HGET', STATE, member))
        if lease then least = math.max(least, lease.nominal - lease.ttl) end
      end
      if not mending then return nil end
      good.clock = least
    end
    if mending and found > 0 then
      put('clock', text_of(good.clock), 'seen', text_of(good.seen or now), 'fence', text_of(good.fence or now),
          'min_ttl', text_of(good.min_ttl or 0))
    elseif not (good.fence and good.min_ttl) then
      return nil
    end
    for _, name in ipairs({'born', 'recover'}) do
      local value = call('HGET', STATE, name)
      local most = name == 'born' and EXACT or good.clock + LONGEST
      if value and not (whole(value) and tonumber(value) <= most) and say(name .. ' is no number, or too high') then
        call('HDEL', STATE, name)
      end
    end
    local first = call('ZRANGE', DUE, 0, 0, 'WITHSCORES')
    if good.next and first[2] and good.next > tonumber(first[2]) then say('next is later than what is due first') end
    return 'leases', ''
  end

  local function scan(where, each, next_part)
    local page = call('HSCAN', STATE, where == '' and '0' or where, 'COUNT', 250)
    for i = 1, #page[2], 2 do each(page[2][i], page[2][i + 1]) end
    budget = budget - #page[2] / 2
    if page[1] ~= '0' then return nil, page[1] end
    return next_part, ''
  end

  local fields = {}

  function fields.lease(name, id, record)
    local lease = parse_lease(record)
    if not match(id, '^%d+$') or not lease then
      if say(name .. ' cannot be read') then
        call('HDEL', STATE, name, 'done/' .. id, 'revoked/' .. id)
        call('ZREM', DUE, name)
        call('ZREM', PORTS, name)
      end
      return
    end
    if (lease.expires > clock + lease.ttl or lease.nominal > lease.expires) and say(name .. ' runs out too late') then
      lease.expires = clock + lease.ttl
      lease.nominal = lease.expires
      put(name, lease.incarnation .. ' ' .. text_of(lease.expires) .. ' ' .. text_of(lease.nominal) .. ' '
          .. text_of(lease.ttl) .. ' ' .. lease.token .. ' ' .. lease.instance)
    end
    if tonumber(call('ZSCORE', DUE, name) or -1) ~= lease.expires and say(name .. ' is not in due as it must be') then
      call('ZADD', DUE, text_of(lease.expires), name)
    end
    if not call('ZSCORE', PORTS, name) and say(name .. ' is not in ports') then call('ZADD', PORTS, 0, name) end
    local other = call('HGET', STATE, 'name/' .. lease.instance)
    local its = other and other ~= id and parse_lease(call('HGET', STATE, 'lease/' .. other))
    if other ~= id and not (its and its.instance == lease.instance) and say(name .. ' is not found by its name') then
      put('name/' .. lease.instance, id)
    end
    if not match(call('HGET', STATE, 'done/' .. id) or '', '^%d+ %d+') and say('done/' .. id .. ' is missing, or cannot be read') then
      put('done/' .. id, '1 0')
    end
    local highest = math.max(tonumber(id), tonumber(lease.incarnation))
    if fence < highest and say('fence is lower than that of ' .. name) then
      fence = highest
      put('fence', text_of(fence))
    end
    if (whole(call('HGET', STATE, 'born')) or 0) > tonumber(id) and say('born is later than ' .. name) then put('born', id) end
    if lease.expires > clock and (min_ttl == 0 or min_ttl > lease.ttl) and say('min_ttl is higher than that of ' .. name) then
      min_ttl = lease.ttl
      put('min_ttl', text_of(min_ttl))
    end
  end

  function fields.done(name, id)
    if not is_lease(id) and say(name .. ' is of no lease') then call('HDEL', STATE, name) end
  end

  function fields.revoked(name, id, entries)
    local rest = entries .. ';'
    local read = string.gsub(rest, '%d+ %l+/%d%d%d%d%d;', '')
    if (read ~= '' or not is_lease(id)) and say(name .. ' is of no lease, or cannot be read') then call('HDEL', STATE, name) end
  end

  function fields.name(name, instance)
    local id = call('HGET', STATE, name)  -- it may have been put right since the page was read
    local lease = parse_lease(id and call('HGET', STATE, 'lease/' .. id))
    if id and not (lease and lease.instance == instance) and say('a name is that of no lease') then call('HDEL', STATE, name) end
  end

  -- Whoever has the place asks again within seconds, and gets it back.
  function fields.wait(name, ticket, record)
    local id = match(record, '^(%d+) %l+ [%d ]+$')
    if not (match(ticket, '^%d+$') and id and is_lease(id) and call('ZSCORE', DUE, name) and call('ZSCORE', PORTS, name))
       and say('a place in the queue is not as it must be') then
      call('HDEL', STATE, name)
      call('ZREM', DUE, name)
      call('ZREM', PORTS, name)
    end
  end

  function fields.last(name, _, value)
    if not (whole(value) and tonumber(value) < 65536) and say(name .. ' is no port') then call('HDEL', STATE, name) end
  end

  local function counter(name, _, value)
    counters[#counters + 1], counters[#counters + 2] = name, value
  end

  fields.owned, fields.foreign = counter, counter

  function parts.leases(where)
    return scan(where, function(name, value)
      local kind, rest = match(name, '^(%l+)/(.*)$')
      if fields[kind] then fields[kind](name, rest, value) end
    end, 'records')
  end

  local function count(name)
    tally[name] = (tally[name] or 0) + 1
  end

  function parts.records(where)
    local live = {}
    return scan(where, function(name, record)
      if not match(name, '^tcp/') and not match(name, '^udp/') and not match(name, '^both/') then return end
      local kind, number = is_port(name)
      if not kind then
        if say('a record is of no port') then call('HDEL', STATE, name) end
        return
      end
      local state, id, its_fence, since, rest, note = parse_port(record)
      local due = tonumber(call('ZSCORE', DUE, name) or -1)
      if not state then
        if say(name .. ' cannot be read') then close(name, match(record, '^%l (%d+) ') or '0', due) end
        return
      end
      if tonumber(its_fence) > fence and say('fence is lower than that of ' .. name) then
        fence = tonumber(its_fence)
        put('fence', its_fence)
      end
      if state == 'h' then
        if live[id] == nil then live[id] = is_lease(id) end
        if not live[id] then
          if say(name .. ' is held under a lease that is not there') then
            local till = text_of(clock + match(rest, '^%d+'))
            put(name, 'c ' .. id .. ' ' .. its_fence .. ' ' .. since .. ' ' .. till .. ' ' .. note)
            call('ZADD', DUE, till, name)
            call('ZREM', PORTS, id .. '/' .. name)
          end
        else
          local tag = match(rest, '^%d+,%d+,(%S+)$')
          if tag and tag ~= '-' then count('owned/' .. tag) end
          if not call('ZSCORE', PORTS, id .. '/' .. name) and say(name .. ' is held and not in ports') then
            call('ZADD', PORTS, 0, id .. '/' .. name)
          end
          if due >= 0 and say(name .. ' is held and in due') then call('ZREM', DUE, name) end
        end
      else
        local till = tonumber(match(rest, '^%d+'))
        if state == 'f' then count('foreign/' .. match(rest, '^%d+,(.*)$')) end
        if (due ~= till or till > clock + LONGEST) and say(name .. ' is not in due as it must be') then
          -- Which of the two is wrong nobody knows, nor whether it cools at all.
          till = text_of(math.max(math.min(math.max(till, due), clock + LONGEST), clock + CLOSED))
          put(name, state .. ' ' .. id .. ' ' .. its_fence .. ' ' .. since .. ' ' .. till .. (match(rest, ',.*$') or '')
              .. ' ' .. note)
          call('ZADD', DUE, till, name)
        end
      end
      for _, one in ipairs(KINDS[kind]) do
        if call('GETBIT', BITS[one], number) == 0 and say(name .. ' is in use and free in ' .. one) then
          call('SETBIT', BITS[one], number, 1)
        end
      end
    end, 'ports')
  end

  function parts.ports(where)
    local members = call('ZRANGE', PORTS, where == '' and '-' or '(' .. where, '+', 'BYLEX', 'LIMIT', 0, 250)
    for _, member in ipairs(members) do
      local id, name = match(member, '^(%d+)/(%l+/%d+)$')
      if not id or not is_port(name) then
        if not (match(member, '^lease/%d+$') or match(member, '^wait/%d+$')) or call('HEXISTS', STATE, member) == 0 then
          if say('ports has something that is not there') then
            call('ZREM', PORTS, member)
          end
        end
      else
        local record = call('HGET', STATE, name)
        if not record then
          if say(name .. ' is held and has no record') then close(name, id, 0) end
        elseif match(record, '^h (%d+) ') ~= id and say(name .. ' is in ports and not held by that lease') then
          call('ZREM', PORTS, member)
        end
      end
    end
    budget = budget - #members
    if #members == 250 then return nil, members[250] end
    return 'due', ''
  end

  function parts.due(where)
    local from = where == '' and 0 or tonumber(where)
    local members, gone = call('ZRANGE', DUE, from, from + 249, 'WITHSCORES'), 0
    for i = 1, #members, 2 do
      local name = members[i]
      local record = call('HGET', STATE, name)
      if is_port(name) then
        if not record and say(name .. ' is in due and has no record') then close(name, '0', tonumber(members[i + 1])) end
      elseif not record and say('due has something that is not there') then
        call('ZREM', DUE, name)
        gone = gone + 1
      end
    end
    budget = budget - #members / 2
    if #members == 500 then return nil, text_of(from + 250 - gone) end
    return 'bits', ''
  end

  function parts.bits(where)
    local from, names, numbers = where == '' and 0 or tonumber(where), {}, {}
    local pages = {tcp = call('GETRANGE', KEYS[4], from / 8, from / 8 + 63), udp = call('GETRANGE', KEYS[5], from / 8, from / 8 + 63)}
    for kind, page in pairs(pages) do
      for at in string.gmatch(page, '()[^%z]') do
        local byte = string.byte(page, at)
        for bit = 7, 0, -1 do
          if byte >= 2 ^ bit then
            byte = byte - 2 ^ bit
            local number = from + (at - 1) * 8 + 7 - bit
            local name = format('%s/%05d', kind, number)
            local known = call('HMGET', STATE, name, format('both/%05d', number))
            if not (known[1] or known[2]) and say(name .. ' is not free and has no record') then
              call('SETBIT', BITS[kind], number, 0)
            end
            budget = budget - 1
          end
        end
      end
    end
    budget = budget - 3
    if from + 512 < 65536 then return nil, text_of(from + 512) end
    return nil, nil
  end

  local part, where = ARGV[1], ARGV[2]
  while part and budget > 0 do
    if part ~= 'head' then
      local numbers = call('HMGET', STATE, 'clock', 'fence', 'min_ttl')
      clock, fence, min_ttl = tonumber(numbers[1]), tonumber(numbers[2]), tonumber(numbers[3])
      if not (clock and fence and min_ttl) then break end  -- it changed meanwhile
    end
    local next_part, next_where = parts[part](where)
    part, where = next_part or next_where and part, next_where
  end
  if mending and found > 0 and call('EXISTS', STATE) == 1 then put('next', 0) end
  local seen_here = {}
  for name, number in pairs(tally) do seen_here[#seen_here + 1], seen_here[#seen_here + 2] = name, number end
  return {'COMPARED', part or '', where or '', found, texts, seen_here, counters}
end
