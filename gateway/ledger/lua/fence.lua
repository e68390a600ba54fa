-- Stop all traffic of a project whose data went back in time, until its counters are restored. KEYS: meta. ARGV[1] its epoch.
if redis.call('HGET', KEYS[1], 'epoch') == ARGV[1] then redis.call('HSET', KEYS[1], 'epoch', '') end
return {0}
