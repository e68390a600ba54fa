-- Set what an account has settled. KEYS: meta, keep, account. ARGV[4] JSON of the amount, ARGV[5] keep_ms.
local now_ms = enter()
local account = read_account(KEYS[3])
redis.call('ZCARD', KEYS[2])
account.settled = cjson.decode(ARGV[4])
account.keep_ms = tonumber(ARGV[5])
keep_time()
write_account(account, KEYS[2], now_ms)
return {ARGV[1] ~= '*' and now_ms or 0}
