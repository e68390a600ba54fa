-- Book what was used, free the rest of the hold and write the event. KEYS: meta, hold, due, outbox, keep, accounts.
-- ARGV[4] id, ARGV[5] JSON [tokens, nano_usd, requests], ARGV[6] detail, ARGV[7] a new name for each settlement, so that a retry after
-- a lost reply still counts as the first. ARGV[8] and ARGV[9] are for a reservation that Redis has lost or never saw (granted
-- during an outage), which is booked anyway: its request as in reserve, with the held amount as sixth item, and its draft.
local now_ms = enter()
local used = cjson.decode(ARGV[5])
local hold = read_hold(KEYS[2])
if hold then return settle(hold, ARGV[4], used, ARGV[6], ARGV[7], now_ms) end
if not ARGV[8] then return {0, '', 0} end

check_indices()
local request = cjson.decode(ARGV[8])
local held, accounts, limits = request[6], accounts_from(6), {}
for index, account in ipairs(accounts) do
  account.keep_ms = request[5][index][8]
  limits[index] = limit_text(triple_at(request[5][index], 1))
end
hold = {
  key = KEYS[2], state = 'settled', limits = table.concat(limits, '\n'), held = held, booked = used,
  overrun = overrun_of(used, held), resolver = ARGV[7],
}
move(accounts, {0, 0, 0}, used)
redis.call('HSET', KEYS[2], 'accounts', names_of_accounts(), 'limits', hold.limits, 'owner', request[1], 'on_lost', request[3],
  'held', amount_text(held), 'output_tokens', '0', 'deadline_ms', number_text(now_ms))
write_resolution(hold, ARGV[4], accounts, now_ms)
emit(ARGV[4], 'settled', used, hold.overrun, now_ms, ARGV[9], ARGV[6])
return resolution(now_ms, hold, true, accounts)
