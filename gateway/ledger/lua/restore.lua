-- Set what an account has settled. KEYS: meta, keep, account and, while the project is closed, its lock. ARGV[4] JSON of the amount,
-- ARGV[5] keep_ms, ARGV[6] the token that holds the lock, ARGV[7] the gate, ARGV[8] JSON of the override (both empty to leave them
-- unchanged). The token matters if a process was suspended until another had restored and opened the project: it must not undo what
-- was settled since.
local now_ms = enter()
if KEYS[4] and redis.call('GET', KEYS[4]) ~= ARGV[6] then fault('LOCK', 'another process restores this project') end
local account = read_account(KEYS[3])
redis.call('ZCARD', KEYS[2])
account.settled = cjson.decode(ARGV[4])
account.keep_ms = tonumber(ARGV[5])
if ARGV[7] and ARGV[7] ~= '' and not GATES[ARGV[7]] then fault('GATE', ARGV[7]) end
keep_time()
write_account(account, KEYS[2], now_ms)
if ARGV[7] and ARGV[7] ~= '' then redis.call('HSET', KEYS[3], 'gate', ARGV[7]) end
if ARGV[8] and ARGV[8] ~= '' then
  redis.call('HSET', KEYS[3], 'override', limit_text(triple_at(cjson.decode(ARGV[8]), 1)))
end
return {ARGV[1] ~= '*' and now_ms or 0}
