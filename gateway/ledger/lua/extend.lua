-- Enlarge a pending hold. KEYS: meta, hold, due, outbox, keep, accounts. ARGV[4] JSON [demand, holds], ARGV[5] a new name for each
-- extension, so that a retry after a lost reply is not done twice.
local now_ms = enter()
local request = cjson.decode(ARGV[4])
local demand, holds = demand_of(request[1]), holds_of(request[2])
local fields = redis.call('HMGET', KEYS[2], 'state', 'held', 'output_tokens', 'deadline_ms', 'accounts', 'extension')
local accounts = accounts_from(6)
if fields[1] and fields[5] ~= table.concat(KEYS, '\n', 6) then fault('ACCOUNTS', fields[5]) end
if fields[1] ~= 'pending' then
  return refusal(0, {1, 'resolved', 0}, {}, holds, accounts, now_ms)
end
local held, output_tokens = amount_of(fields[2], KEYS[2]), integer(fields[3], KEYS[2])
local deadline_ms = integer(fields[4], KEYS[2])
if fields[6] == ARGV[5] then
  return grant(0, output_tokens, held, deadline_ms, now_ms, {}, holds, accounts)
end
redis.call('ZCARD', KEYS[5])
local more_tokens, refused, needed, breaches = fit(demand, holds, accounts, true, held)
if not more_tokens then return refusal(0, refused, needed, holds, accounts, now_ms) end

local more = amount_at(demand, more_tokens)
output_tokens = output_tokens + more_tokens
for unit = 1, 3 do held[unit] = held[unit] + more[unit] end
for index, account in ipairs(accounts) do place(account, holds[index], more) end

keep_time()
for _, account in ipairs(accounts) do write_account(account, KEYS[5], now_ms) end
redis.call('HSET', KEYS[2], 'held', amount_text(held), 'output_tokens', number_text(output_tokens),
  'limits', limits_text(holds), 'extension', ARGV[5])
return grant(now_ms, output_tokens, held, deadline_ms, now_ms, breaches, holds, accounts)
