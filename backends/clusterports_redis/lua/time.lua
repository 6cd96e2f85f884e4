-- Reads the space's own fields and moves its clock to now. Leaves `gap`, the time since the last visit, and
-- `before`, the clock then; both nil when there is no such space.
local s = call('HMGET', STATE, 'schema', 'clock', 'seen', 'fence', 'min_ttl', 'next', $reads)
local gap, before
if s[1] == '1' then
  clock, seen, fence, min_ttl, next_due = tonumber(s[2]), tonumber(s[3]), tonumber(s[4]), tonumber(s[5]), tonumber(s[6])
  -- A fence of more than 2^53 would be rounded.
  if not (clock and seen and fence and min_ttl and next_due and fence < 9007199254740992) then
    rare().damaged('state is incomplete')
  end
  gap, before = now - seen, clock  -- time moves in grains of 1,000, and by at most 3,600,000,000 at once
  if gap >= 1000 then
    clock = clock + (gap < 3600000000 and gap or 3600000000)
    seen = now
  elseif gap < 0 then
    seen = now
  end
else
  rare().unknown(s[1])
end
