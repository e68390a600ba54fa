-- Forget events that the store has. KEYS: meta, outbox, leases. ARGV[4…] positions. Good in any epoch: they name what was read.
redis.call('XLEN', KEYS[2])
redis.call('HLEN', KEYS[3])
for index = 4, #ARGV do
  redis.call('XDEL', KEYS[2], ARGV[index])
  redis.call('HDEL', KEYS[3], ARGV[index])
end
return {0}
