-- flags: no-writes
-- parts: clock space
-- reads: 'schema'
-- For doctor: a part of what the keys of a space say of each other; changes nothing.
-- KEYS, ARGV and reply: see compare.lua
-- include: compare
return compare(false)
