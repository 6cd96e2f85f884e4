-- Picks the numbers for asks, without changing anything but its own scratch keys.
-- KEYS  6, 8 scratch  7 mask: 8,192 times 00001111. Only where an ask is for both protocols or for a block.
-- ARGV  of each ask: protocol, count, hold, note, more, number of spans, then first and last of each span
--       hold  quarantine, or quarantine,cooldown,tag: what the record of the port keeps
--       more  '' or: align rotate limit explicit tag range; see Ask in abc.py. explicit: 2 where it is running. The tag
--             stands for range and owner
local function picker(space)
  local call, format, match, floor = redis.call, string.format, string.match, math.floor
  local STATE, PORTS = KEYS[1], KEYS[3]
  local bits, busy = {tcp = KEYS[4], udp = KEYS[5], both = KEYS[6]}, {tcp = {}, udp = {}}
  local self = {names = {}, asked = {}, bits = {tcp = {}, udp = {}}, evicted = {}, counters = {}}
  local merged, whole, masked, gone, reached = false, {}, {}, {}, {}
  local TWO = {128, 64, 32, 16, 8, 4, 2, 1}
  local ask  -- the one in hand
  local shut = {}  -- spans that those before wait for, as far as the ask may look there
  local before  -- what they wait for
  local careful  -- a number may be found that is not to be taken

  -- What this request has taken already.
  local function is_busy(number)
    if not careful then return false end
    for _, kind in ipairs(ask.kinds) do
      if busy[kind][number] then return true end
    end
    return false
  end

  local function take(number)
    for _, kind in ipairs(ask.kinds) do
      if careful then busy[kind][number] = true end
      local bits = self.bits[kind]
      bits[#bits + 1] = number
    end
    local at = #self.names + 1
    self.names[at], self.asked[at] = format(ask.shape, number), ask
    ask.missing, ask.last = ask.missing - 1, number
  end

  local function next_bit(value, from, last)
    if from > last then return -1 end
    local bit = call('BITPOS', bits[ask.protocol], value, from, last, 'BIT')
    if bit >= 0 and bit < from then space.damaged(ask.protocol .. ' is missing') end
    return bit
  end

  local function text()
    local kind = ask.protocol
    whole[kind] = whole[kind] or call('GETRANGE', bits[kind], 0, -1)
    return whole[kind]
  end

  -- Twice half of the bitmap: a zero byte of the first half is four free numbers, the left ones of that byte; of the
  -- second, the right ones. So that finding four is a search for one byte, which costs next to nothing.
  local function halves()
    local found = masked[ask.protocol]
    if not found then
      local source = bits[ask.protocol]
      if call('EXISTS', KEYS[7]) == 0 then call('SET', KEYS[7], string.rep('\15', 8192)) end
      call('BITOP', 'AND', KEYS[8], source, KEYS[7])
      local right = call('GETRANGE', KEYS[8], 0, -1)
      call('BITOP', 'XOR', KEYS[8], KEYS[8], source)
      found = {call('GETRANGE', KEYS[8], 0, -1), right}
      call('DEL', KEYS[8])
      masked[ask.protocol] = found
    end
    return found
  end

  -- From a number on, the first four free ones that lie in one half of a byte.
  local function next_four(from)
    local found
    for half = 1, 2 do
      local start, number = floor(from / 8) + 1, nil
      repeat
        local at = string.find(halves()[half], '\0', start, true)
        number = at and (at - 1) * 8 + (half - 1) * 4
        start = at and at + 1
      until not at or number >= from
      if number and (not found or number < found) then found = number end
    end
    return found
  end

  -- The lowest block inside one span. A window is tried from its end: what is taken there moves it on by the most.
  -- Where a block is of seven or more, it has four numbers in one half of a byte: only there it is looked for.
  local function find_block(first, last)
    local count, align, bytes = ask.count, ask.align, text()
    local start, till = first, last - count + 1
    local most = till
    while true do
      if count >= 7 and not space.dry_run and (most == till or start > most) then
        local four = next_four(start)
        if not four then return nil end
        start, most = math.max(start, four - 3), math.min(till, four)
      end
      start = math.ceil(start / align) * align
      if start > till then return nil end
      if start <= most then
        local taken
        for number = start + count - 1, start, -1 do
          if floor(string.byte(bytes, floor(number / 8) + 1) / TWO[number % 8 + 1]) % 2 == 1 or is_busy(number) then
            taken = number
            break
          end
        end
        if not taken then return start end
        start = taken + 1
      end
    end
  end

  local function search(first, last)
    if ask.align > 0 then
      local start = find_block(first, last)
      if start then
        for number = start, start + ask.count - 1 do take(number) end
      end
      return
    end
    local span = format('%s %d %d', ask.protocol, first, last)
    local at = reached[span] or first  -- asks of one request often want the same
    while ask.missing > 0 do
      local from = next_bit(0, at, last)
      if from < 0 then break end
      local till = ask.missing > 1 and next_bit(1, from + 1, math.min(last, from + 255)) or from + 1
      if till < 0 then till = math.min(last, from + 255) + 1 end
      for number = from, till - 1 do
        if ask.missing > 0 and not is_busy(number) then take(number) end
        if ask.missing > 0 or ask.last == number then at = number + 1 end
      end
    end
    reached[span] = at
  end

  local function search_marked()
    local number, found, marked, free = ask.spans[1][1], space.in_the_way(ask.protocol, ask.spans[1][1]), false, #shut == 0
    for _, record in pairs(found) do
      marked = true
      local state = string.sub(record, 1, 2)
      free = free and (state == 'f ' or state == 'c ' and ask.running)
    end
    for _, kind in ipairs(ask.kinds) do
      free = free and not busy[kind][number] and (marked or call('GETBIT', bits[kind], number) == 0)
    end
    if not free then return end
    for name in pairs(found) do
      if not gone[name] then self.evicted[#self.evicted + 1] = name end
      gone[name] = true
    end
    take(number)
  end

  -- The spans in their order; the first `rotate` of them in a circle.
  local function search_order()
    local from = ask.rotate > 0 and tonumber(call('HGET', STATE, 'last/' .. ask.range) or 0) or 0
    if from == 0 then return ask.spans end
    local order, across = {}, ask.align > 0 and ask.count - 1 or 0
    for i = 1, ask.rotate do
      local first, last = unpack(ask.spans[i])
      if last > from then order[#order + 1] = {math.max(first, from + 1), last} end
    end
    for i = 1, ask.rotate do
      local first, last = unpack(ask.spans[i])
      if first <= from then order[#order + 1] = {first, math.min(last, from + across)} end
    end
    for i = ask.rotate + 1, #ask.spans do order[#order + 1] = ask.spans[i] end
    return order
  end

  local function over_limit()
    if ask.limit == 0 then return false end
    local name = 'owned/' .. ask.tag
    local held = tonumber(self.counters[name] or call('HGET', STATE, name) or 0)
    self.counters[name] = held + ask.count
    return held + ask.count > ask.limit and not ask.running
  end

  local function find_shut(ticket)
    shut = {}
    if not space.waiting or ask.running then return end
    before = before or space.wanted(space.tickets(ticket > 0 and format('%016.0f', ticket) or nil))
    for _, place in ipairs(before) do
      local protocol = match(place.wanted, '^%l+')
      if protocol == ask.protocol or protocol == 'both' or ask.protocol == 'both' then
        for first, last in string.gmatch(place.wanted, '(%d+) (%d+)') do
          first, last = tonumber(first), tonumber(last)
          for _, span in ipairs(ask.spans) do
            if first <= span[2] and span[1] <= last then
              shut[#shut + 1] = {first, last}
              break
            end
          end
        end
      end
    end
  end

  -- What is left of a span without those that are shut.
  local function open_parts(first, last)
    local parts = {{first, last}}
    for _, hole in ipairs(shut) do
      local left = {}
      for _, part in ipairs(parts) do
        if hole[1] > part[2] or hole[2] < part[1] then
          left[#left + 1] = part
        else
          if part[1] < hole[1] then left[#left + 1] = {part[1], hole[1] - 1} end
          if hole[2] < part[2] then left[#left + 1] = {hole[2] + 1, part[2]} end
        end
      end
      parts = left
    end
    return parts
  end

  local function parse(at)
    local align, rotate, limit, explicit, tag, range = match(ARGV[at + 4], '^(%d+) (%d+) (%d+) (%d) (%S+) (.*)$')
    ask = {protocol = ARGV[at], count = tonumber(ARGV[at + 1]), hold = ARGV[at + 2], note = ARGV[at + 3], range = range,
           align = tonumber(align or 0), rotate = tonumber(rotate or 0), limit = tonumber(limit or 0),
           explicit = (explicit or '0') ~= '0', running = explicit == '2', tag = tag, spans = {},
           kinds = space.KINDS[ARGV[at]], shape = ARGV[at] .. '/%05d'}
    ask.missing = ask.count
    local final = at + 5 + 2 * ARGV[at + 5]
    for i = at + 6, final, 2 do ask.spans[#ask.spans + 1] = {tonumber(ARGV[i]), tonumber(ARGV[i + 1])} end
    return final + 1
  end

  -- Names and asks of what was picked; or `why` not, and the index of the ask that was refused.
  function self.pick(at, count, ticket)
    for index = 1, count do
      at = parse(at)
      careful = careful or count > 1 or #ask.spans > 1
      if over_limit() then
        self.why = 'limit'
      else
        find_shut(ticket)
        if ask.protocol == 'both' and not merged then
          call('BITOP', 'OR', KEYS[6], KEYS[4], KEYS[5])
          merged = true
        end
        if ask.explicit then
          search_marked()
        else
          for _, span in ipairs(search_order()) do
            for _, part in ipairs(#shut > 0 and open_parts(unpack(span)) or {span}) do
              if ask.missing > 0 then search(unpack(part)) end
            end
          end
        end
        if ask.missing > 0 then self.why = #shut > 0 and 'queue' or 'taken' end
        if ask.rotate > 0 then self.counters['last/' .. ask.range] = ask.last end
      end
      if self.why then
        self.refused = index - 1
        break
      end
    end
    if merged then call('DEL', KEYS[6]) end
    if self.why then return end
    local others, at, sub = {}, 0, string.sub
    for i, name in ipairs(self.names) do
      local number = sub(name, -6)
      if self.asked[i].protocol == 'both' then
        others[at + 1], others[at + 2], others[at + 3] = name, 'tcp' .. number, 'udp' .. number
        at = at + 3
      else
        others[at + 1], others[at + 2] = name, 'both' .. number
        at = at + 2
      end
    end
    for i, known in ipairs(space.records(others)) do
      if known and not gone[others[i]] then space.damaged('a port is free and in use: ' .. others[i]) end
    end
  end

  -- What is in the way of a refused explicit ask: name and record, or twice ''.
  function self.explicit()
    if ask.explicit then
      local found, marked = space.in_the_way(ask.protocol, ask.spans[1][1])
      for _, kind in ipairs(space.OVER[ask.protocol]) do
        local name = format('%s/%05d', kind, ask.spans[1][1])
        local record = found[name]
        if record and string.sub(record, 1, 2) ~= 'f ' then return name, record end  -- a mark alone is not in the way
        marked = marked or record and name
      end
      if marked then return marked, found[marked] end
    end
    return '', ''
  end

  -- The ask that was refused, as an event tells of it; once a minute while not much else happens. Those who watch a
  -- host ask for what runs there, and others have, again and again.
  function self.tell_refused(id)  -- events
    if ask.running then return end  -- events
    local name = format(ask.shape, ask.explicit and ask.spans[1][1] or 0)  -- events
    local record = space.brief('h ' .. id .. ' 0 0 0 ' .. ask.note)  -- events
    local about = match(record, ',"l":.*$')  -- events
    local told = redis.pcall('XREVRANGE', KEYS[#KEYS], '+', '-', 'COUNT', '16')  -- events
    if told.err then return end  -- events
    for _, entry in ipairs(told) do  -- events
      local at, its_name, its_about = match(entry[2][2], '^refused (%d+) (%S+) .-(,"l":.*)$')  -- events
      if its_name == name and its_about == about and now - at < 60000000 then return end  -- events
    end  -- events
    space.tell('refused', name, record)  -- events
  end  -- events

  -- The ask in hand as a place in the queue keeps it: the same for all who want the same numbers.
  function self.wanted()
    local spans, words = {}, {}
    for i, span in ipairs(ask.spans) do spans[i] = span end
    table.sort(spans, function(a, b) return a[1] < b[1] end)
    local first, last
    for _, span in ipairs(spans) do
      if last and span[1] <= last + 1 then
        last = math.max(last, span[2])
      else
        if last then words[#words + 1] = first .. ' ' .. last end
        first, last = span[1], span[2]
      end
    end
    if last then words[#words + 1] = first .. ' ' .. last end
    return ask.protocol .. ' ' .. table.concat(words, ' ')
  end

  return self
end
