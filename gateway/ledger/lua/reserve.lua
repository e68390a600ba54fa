-- Set aside a demand on every account of the chain, or on none; what the caller tightens stays tightened either way. KEYS: meta, hold,
-- due, outbox, keep, accounts. ARGV[4] the request as JSON [owner, ttl_ms, on_lost, demand, holds], ARGV[5] the draft of the event,
-- ARGV[6] the id.
local now_ms = enter()
local request = cjson.decode(ARGV[4])
local demand, holds = demand_of(request[4]), holds_of(request[5])
local known = redis.call('HMGET', KEYS[2], 'held', 'output_tokens', 'deadline_ms', 'accounts')
local names = table.concat(KEYS, '\n', 6)
if known[1] then
  -- A retry with the same id, perhaps because the first reply was lost: the first grant stands.
  if known[4] ~= names then fault('ACCOUNTS', known[4]) end
  return grant(0, integer(known[2], KEYS[2]), amount_of(known[1], KEYS[2]), integer(known[3], KEYS[2]), now_ms,
    {}, holds, accounts_from(6))
end
redis.call('ZCARD', KEYS[3])
redis.call('ZCARD', KEYS[5])
local accounts = accounts_from(6)
local output_tokens, refused, needed, breaches = fit(demand, holds, accounts, false, {0, 0, 0})
if not output_tokens then
  local tightened = {}
  for index, account in ipairs(accounts) do
    local hold = holds[index]
    if tighten(account, hold.tighten) then
      account.keep_ms = hold.keep_ms
      tightened[#tightened + 1] = account
    end
  end
  if #tightened > 0 then keep_time() end
  for _, account in ipairs(tightened) do write_account(account, KEYS[5], now_ms) end
  return refusal(#tightened > 0 and now_ms or 0, refused, needed, holds, accounts, now_ms)
end

local held = amount_at(demand, output_tokens)
for index, account in ipairs(accounts) do place(account, holds[index], held) end

local deadline_ms = now_ms + request[2]
keep_time()
for _, account in ipairs(accounts) do write_account(account, KEYS[5], now_ms) end
redis.call('HSET', KEYS[2], 'state', 'pending', 'accounts', names, 'limits', limits_text(holds), 'owner', request[1],
  'on_lost', request[3], 'draft', ARGV[5], 'held', amount_text(held), 'output_tokens', number_text(output_tokens),
  'deadline_ms', number_text(deadline_ms))
redis.call('ZADD', KEYS[3], number_text(deadline_ms), ARGV[6])
return grant(now_ms, output_tokens, held, deadline_ms, now_ms, breaches, holds, accounts)
