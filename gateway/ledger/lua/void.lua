-- Release the whole hold, or take back what its expiry booked. KEYS: meta, hold, due, outbox, keep, accounts. ARGV[4] id,
-- ARGV[5] a new name for each call.
local now_ms = enter()
local hold = read_hold(KEYS[2])
if not hold then return {0, '', 0} end
if hold.state == 'expired' then return settle(hold, ARGV[4], {0, 0, 0}, '', ARGV[5], now_ms) end
check_names(hold)
check_indices()
local accounts = accounts_from(6)
if hold.state ~= 'pending' then
  return resolution(0, hold, hold.resolver == ARGV[5], accounts)
end
move(accounts, hold.held, {0, 0, 0})
hold.state, hold.resolver = 'voided', ARGV[5]
write_resolution(hold, ARGV[4], accounts, now_ms)
redis.call('HDEL', hold.key, 'draft')
return resolution(now_ms, hold, true, accounts)
