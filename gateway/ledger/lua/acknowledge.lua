-- Remove events that the store has. KEYS: meta, outbox, leases. ARGV[4…] positions, at least one, at most as many as one command takes.
-- Valid in any epoch, because positions name what was read.
redis.call('XLEN', KEYS[2])
redis.call('HLEN', KEYS[3])
redis.call('XDEL', KEYS[2], unpack(ARGV, 4))
redis.call('HDEL', KEYS[3], unpack(ARGV, 4))
return {0}
