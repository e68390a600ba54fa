-- Forget events that the store has. KEYS: meta, outbox, leases. ARGV[4…] positions, at least one and as many as one command takes.
-- Good in any epoch: they name what was read.
redis.call('XLEN', KEYS[2])
redis.call('HLEN', KEYS[3])
redis.call('XDEL', KEYS[2], unpack(ARGV, 4))
redis.call('HDEL', KEYS[3], unpack(ARGV, 4))
return {0}
