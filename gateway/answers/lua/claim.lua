-- Return the stored answer, or else another owner's claim, or else make a claim.
-- KEYS: entry, claim. ARGV: owner, fingerprint, milliseconds of the claim.
local kept = redis.call('HMGET', KEYS[1], 'fingerprint', 'content_type', 'body')
if kept[3] then return {'kept', kept[1], kept[2], kept[3]} end
local held = redis.call('HMGET', KEYS[2], 'owner', 'fingerprint')
if held[1] and held[1] ~= ARGV[1] then return {'claimed', held[2]} end
redis.call('HSET', KEYS[2], 'owner', ARGV[1], 'fingerprint', ARGV[2])
redis.call('PEXPIRE', KEYS[2], ARGV[3])
return {'free'}
