-- The implicit run of a workflow. KEYS: meta, run, keep. ARGV[4] the candidate, ARGV[5] the silence in ms that ends the run.
local now_ms = enter()
local known = redis.call('HMGET', KEYS[2], 'run', 'closes_ms')
redis.call('ZCARD', KEYS[3])
local run = ARGV[4]
if known[1] and integer(known[2], KEYS[2]) > now_ms then run = known[1] end
local closes_ms = now_ms + tonumber(ARGV[5])
keep_time()
redis.call('HSET', KEYS[2], 'run', run, 'closes_ms', number_text(closes_ms))
-- As with accounts, the index only needs a time that is not too late.
if not known[1] or closes_ms < integer(known[2], KEYS[2]) then
  redis.call('ZADD', KEYS[3], number_text(closes_ms), KEYS[2])
end
return {now_ms, run}
