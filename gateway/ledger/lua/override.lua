-- Replace an account's limit and forget what callers tightened it to. KEYS: meta, keep, account. ARGV[4] JSON of the limit,
-- ARGV[5] the keep_ms of a new account.
local now_ms = enter()
local account = read_account(KEYS[3])
redis.call('ZCARD', KEYS[2])
account.override = triple_at(cjson.decode(ARGV[4]), 1)
account.tightened = NO_LIMIT
if not account.kept_ms then account.keep_ms = tonumber(ARGV[5]) end
keep_time()
write_account(account, KEYS[2], now_ms)
redis.call('HSET', KEYS[3], 'override', limit_text(account.override))
local reply = {now_ms}
put_balance(reply, account, effective_limit(account, NO_LIMIT, NO_LIMIT))
return reply
