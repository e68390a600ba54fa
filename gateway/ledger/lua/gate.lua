-- Open or close an account for new reservations. KEYS: meta, keep, account. ARGV[4] the gate, ARGV[5] as in override.
local now_ms = enter()
local account = read_account(KEYS[3])
redis.call('ZCARD', KEYS[2])
account.gate = ARGV[4]
if not account.kept_ms then account.keep_ms = tonumber(ARGV[5]) end
keep_time()
write_account(account, KEYS[2], now_ms)
redis.call('HSET', KEYS[3], 'gate', account.gate)
local reply = {now_ms}
put_balance(reply, account, effective_limit(account, NO_LIMIT, NO_LIMIT))
return reply
