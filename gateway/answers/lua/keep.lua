-- Store an answer, evicting others if its use and project have no room left.
-- KEYS: entry, claim, ends, bytes; all of one project, so that a cluster has them on one node, as well as the entries that `ends` names.
-- ends: the entries by expiry time, each as '<bytes> <key>'. bytes: their total size.
-- ARGV: fingerprint, content type, body, milliseconds to keep it, its bytes, the bytes of the limit.
local ttl_ms, size, bytes_max = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)

local function forget(member)
  local weight, key = string.match(member, '^(%d+) (.+)$')
  if redis.call('ZREM', KEYS[3], member) == 0 then return end
  redis.call('DECRBY', KEYS[4], weight)
  -- An answer that was kept again after this one expired, but before it was swept, stays.
  if redis.call('HGET', key, 'bytes') == weight then redis.call('DEL', key) end
end

local function lengthen(key)
  if redis.call('PTTL', key) < ttl_ms then redis.call('PEXPIRE', key, ttl_ms) end
end

local replaced = redis.call('HGET', KEYS[1], 'bytes')
if replaced then forget(replaced .. ' ' .. KEYS[1]) end
for _, member in ipairs(redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', now_ms, 'LIMIT', 0, 1000)) do forget(member) end
while tonumber(redis.call('GET', KEYS[4]) or '0') + size > bytes_max do
  local soonest = redis.call('ZRANGE', KEYS[3], 0, 0)[1]
  if not soonest then break end
  forget(soonest)
end
redis.call('HSET', KEYS[1], 'fingerprint', ARGV[1], 'content_type', ARGV[2], 'body', ARGV[3], 'bytes', ARGV[5])
redis.call('PEXPIRE', KEYS[1], ttl_ms)
-- An expired entry that was not swept yet is still counted.
if redis.call('ZADD', KEYS[3], now_ms + ttl_ms, ARGV[5] .. ' ' .. KEYS[1]) == 1 then redis.call('INCRBY', KEYS[4], size) end
lengthen(KEYS[3])
lengthen(KEYS[4])
redis.call('DEL', KEYS[2])
return 1
