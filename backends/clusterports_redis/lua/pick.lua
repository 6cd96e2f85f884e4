-- Picks the numbers for asks, without changing anything but its own scratch keys.
-- KEYS  6, 8 scratch  7 mask: 8,192 times 00001111. Only where an ask is for both protocols or for a block.
-- ARGV  of each ask: protocol, count, hold, note, more, number of spans, then first and last of each span
--       hold  quarantine, or quarantine,cooldown,tag: what the record of the port keeps
--       more  '' or: align rotate limit explicit tag range; see Ask in abc.py. The tag stands for range and owner
local function picker(space)
  local call, format, match, floor = redis.call, string.format, string.match, math.floor
  local STATE, PORTS = KEYS[1], KEYS[3]
  local bits, busy = {tcp = KEYS[4], udp = KEYS[5], both = KEYS[6]}, {tcp = {}, udp = {}}
  local self = {names = {}, asked = {}, bits = {tcp = {}, udp = {}}, evicted = {}, counters = {}}
  local merged, masked, gone = false, {}, {}
  local ask  -- the one in hand
  local wanted_before = {}
  local careful  -- a number may be found that is not to be taken

  local function is_busy(number)
    if not careful then return false end
    for _, kind in ipairs(ask.kinds) do
      if busy[kind][number] or wanted_before[kind][number] then return true end
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

  -- The bitmap as two strings: a zero byte of the first is four free numbers, the left ones of that byte; of the
  -- second, the right ones. So that finding is a search for one byte, which costs next to nothing.
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

  -- The first part that any run of so many free numbers must have, from a number on: where it begins, its size.
  local function next_seed(from, last)
    if ask.count < 3 then return next_bit(0, from, last), 1 end
    local found, size = -1, 4
    local byte = floor(from / 8) + 1
    if ask.count < 7 then
      local text = call('GETRANGE', bits[ask.protocol], byte - 1, floor(last / 8))
      for i = 1, #text do
        local b = string.byte(text, i)
        if b < 64 or b % 64 < 16 or b % 16 < 4 or b % 4 == 0 then
          local at = (byte + i - 2) * 8
          for pair, free in ipairs({b < 64, b % 64 < 16, b % 16 < 4, b % 4 == 0}) do
            if free and at + 2 * pair - 2 >= from then return at + 2 * pair - 2, 2 end
          end
        end
      end
      return -1
    end
    for half, text in ipairs(halves()) do
      local start = byte
      repeat
        local at = string.find(text, '\0', start, true)
        local number = at and (at - 1) * 8 + (half - 1) * 4
        if number and number >= from and number <= last and (found < 0 or number < found) then found = number end
        start = at and at + 1
      until not at or number >= from
    end
    return found, size
  end

  -- The lowest block inside one span.
  local function find_block(first, last)
    local count, align, from = ask.count, ask.align, first
    while from + count - 1 <= last do
      local seed, size = next_seed(from, last)
      if seed < 0 then return nil end
      local left = seed
      while left > from and seed - left < size - 1 and call('GETBIT', bits[ask.protocol], left - 1) == 0 do
        left = left - 1
      end
      local right = next_bit(1, math.min(seed + size, last + 1), last)
      right = right < 0 and last or right - 1
      local start = math.ceil(left / align) * align
      while start + count - 1 <= right do
        local taken
        for number = start + count - 1, start, -1 do
          if is_busy(number) then
            taken = number
            break
          end
        end
        if not taken then return start end
        start = math.ceil((taken + 1) / align) * align
      end
      from = right + 1
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
    local at = first
    while ask.missing > 0 do
      local from = next_bit(0, at, last)
      if from < 0 then return end
      local till = ask.missing > 1 and next_bit(1, from + 1, math.min(last, from + 255)) or from + 1
      if till < 0 then till = math.min(last, from + 255) + 1 end
      for number = from, till - 1 do
        if ask.missing > 0 and not is_busy(number) then take(number) end
      end
      at = till
    end
  end

  local function search_marked()
    local number, names, free = ask.spans[1][1], {}, true
    for name, record in pairs(space.in_the_way(ask.protocol, number)) do
      if not gone[name] then
        names[#names + 1] = name
        free = free and string.sub(record, 1, 2) == 'f '
      end
    end
    for _, kind in ipairs(ask.kinds) do
      free = free and not busy[kind][number] and (#names > 0 or call('GETBIT', bits[kind], number) == 0)
    end
    if not free then return end
    for _, name in ipairs(names) do
      gone[name] = true
      self.evicted[#self.evicted + 1] = name
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
    return held + ask.count > ask.limit
  end

  local function blocked(ticket)
    wanted_before = {tcp = {}, udp = {}}
    for _, other in ipairs(space.waiting and space.tickets() or {}) do
      if ticket > 0 and tonumber(other) >= ticket then break end
      local place = space.place(other)
      if space.share_kind(place, ask) then
        if place.explicit and not ask.explicit then
          for _, kind in ipairs(space.KINDS[place.protocol]) do wanted_before[kind][place.spans[1][1]] = true end
        elseif space.overlap(place, ask) then
          return true
        end
      end
    end
    return false
  end

  local function parse(at)
    local align, rotate, limit, explicit, tag, range = match(ARGV[at + 4], '^(%d+) (%d+) (%d+) (%d) (%S+) (.*)$')
    ask = {protocol = ARGV[at], count = tonumber(ARGV[at + 1]), hold = ARGV[at + 2], note = ARGV[at + 3], range = range,
           align = tonumber(align or 0), rotate = tonumber(rotate or 0), limit = tonumber(limit or 0),
           explicit = explicit == '1', tag = tag, spans = {}, kinds = space.KINDS[ARGV[at]], shape = ARGV[at] .. '/%05d'}
    ask.missing = ask.count
    local final = at + 5 + 2 * ARGV[at + 5]
    for i = at + 6, final, 2 do ask.spans[#ask.spans + 1] = {tonumber(ARGV[i]), tonumber(ARGV[i + 1])} end
    return final + 1
  end

  -- Names and asks of what was picked; or `why` not, and the index of the ask that was refused.
  function self.pick(at, count, ticket)
    local rotated = {}
    for index = 1, count do
      at = parse(at)
      careful = careful or count > 1 or #ask.spans > 1 or space.waiting
      if over_limit() then
        self.why = 'limit'
      elseif blocked(ticket) then
        self.why = 'queue'
      else
        if ask.protocol == 'both' and not merged then
          call('BITOP', 'OR', KEYS[6], KEYS[4], KEYS[5])
          merged = true
        end
        if ask.explicit then
          search_marked()
        else
          for _, span in ipairs(search_order()) do
            if ask.missing == 0 then break end
            search(unpack(span))
          end
        end
        if ask.missing > 0 then self.why = 'taken' end
        if ask.rotate > 0 then rotated['last/' .. ask.range] = ask.last end
      end
      if self.why then
        self.refused = index - 1
        break
      end
    end
    if merged then call('DEL', KEYS[6]) end
    for name, number in pairs(rotated) do self.counters[name] = number end
    if self.why then return end
    local others = self.names
    if merged then
      others = {}
      for _, name in ipairs(self.names) do
        others[#others + 1] = name
        if string.sub(name, 1, 4) == 'both' then
          others[#others + 1], others[#others + 2] = 'tcp' .. string.sub(name, 5), 'udp' .. string.sub(name, 5)
        end
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

  -- The ask in hand as a place in the queue keeps it.
  function self.wanted()
    local words = {ask.explicit and '1' or '0', ask.protocol}
    for _, span in ipairs(ask.spans) do
      words[#words + 1] = span[1]
      words[#words + 1] = span[2]
    end
    return table.concat(words, ' ')
  end

  return self
end
