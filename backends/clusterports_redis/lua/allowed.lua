-- A command that this user may not run would fail in mid-script, with the writes before it done. So all that any
-- operation runs after its first write is tried here, where nothing is written yet (emulators have no acl_check_cmd). It
-- costs too much for each step: whoever has a lease could do all of that when it opened it.
if redis.acl_check_cmd then
  for _, command in ipairs({{'HSET', STATE, 'f', 'v'}, {'HDEL', STATE, 'f'}, {'ZADD', DUE, '0', 'm'}, {'ZREM', DUE, 'm'},
                            {'ZADD', PORTS, '0', 'm'}, {'ZREM', PORTS, 'm'}, {'SETBIT', KEYS[4], '0', '0'},
                            {'SETBIT', KEYS[5], '0', '0'}, {'BITFIELD', KEYS[4], 'SET', 'u1', '0', '0'},
                            {'BITFIELD', KEYS[5], 'SET', 'u1', '0', '0'}, {'ZLEXCOUNT', PORTS, '-', '+'},
                            {'ZRANGE', DUE, '0', '0'}, {'HGET', STATE, 'f'}}) do
    if not redis.acl_check_cmd(unpack(command)) then error('NOPERM this user has no permission for ' .. command[1], 0) end
  end
end
