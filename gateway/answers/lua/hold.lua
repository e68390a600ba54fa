-- Extend the caller's own claim, or end it. KEYS: claim. ARGV: owner, milliseconds; 0 ends it.
if redis.call('HGET', KEYS[1], 'owner') ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
