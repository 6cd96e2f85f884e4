-- flags: none
-- parts: clock space time pick
-- reads: 'schema'
-- What acquire would give now. Writes nothing that stays.
-- KEYS  see space.lua, and pick.lua
-- ARGV  number of asks, then the asks, see pick.lua
-- Returns {'PREVIEW', 'port port ...'}, {'EMPTY'} where there is no space, or {'FULL', ...} or {'RECOVERING', ...} as acquire
if not gap then return {'EMPTY'} end
local space = rare(clock, min_ttl, next_due, now)
local till = space.recovers(before)
if till then return {'RECOVERING', format('%.0f', till - clock)} end
space.waiting, space.dry_run = true, true
local picked = picker(space)
picked.pick(2, tonumber(ARGV[1]), 0)
if picked.why then
  local due = call('ZRANGE', DUE, 0, 0, 'WITHSCORES')
  local name, record = picked.explicit()
  return {'FULL', picked.refused, picked.why, due[2] and tonumber(due[2]) <= clock and 1 or 0, format('%.0f', clock),
          format('%.0f', now), name, record}
end
return {'PREVIEW', table.concat(picked.names, ' ')}
