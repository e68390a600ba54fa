-- Open a project for traffic, because it is new or its counters have been restored. KEYS: meta, lock. ARGV[4] the new epoch,
-- ARGV[5] the token that holds the lock ('' if there was no restoration). Replies {epoch}.
local meta = redis.call('HMGET', KEYS[1], 'epoch', 'layout')
if meta[2] and integer(meta[2], KEYS[1]) > LAYOUT then fault('LAYOUT', meta[2]) end
if meta[1] and meta[1] ~= '' then return {meta[1]} end
if ARGV[5] ~= '' and redis.call('GET', KEYS[2]) ~= ARGV[5] then fault('LOCK', 'another process restores this project') end
redis.call('HSET', KEYS[1], 'epoch', ARGV[4], 'layout', number_text(LAYOUT))
return {ARGV[4]}
