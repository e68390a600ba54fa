-- How a reservation ends. KEYS: meta, hold, due, outbox, keep, then the accounts of the reservation.
local RESOLVED_KEEP_MS = 3600000
-- Longer, because its settlement may still come: from a gateway that was cut off from Redis, or from the disk of one that died.
local EXPIRED_KEEP_MS = 7 * 86400000

local function read_hold(key)
  local fields = redis.call('HMGET', key, 'state', 'accounts', 'limits', 'draft', 'held', 'progress', 'booked', 'overrun',
    'resolver', 'deadline_ms')
  if not fields[1] then return nil end
  return {
    key = key,
    state = fields[1],
    accounts = fields[2],
    limits = fields[3] or '',
    draft = fields[4] or '',
    held = amount_of(fields[5], key),
    progress = amount_of(fields[6], key),
    booked = amount_of(fields[7], key),
    overrun = amount_of(fields[8], key),
    resolver = fields[9] or '',
    deadline_ms = integer(fields[10], key),
  }
end

local function names_of_accounts()
  return table.concat(KEYS, '\n', 6)
end

-- The caller passed the accounts that it remembers: they must be the reservation's.
local function check_names(hold)
  if hold.accounts ~= names_of_accounts() then fault('ACCOUNTS', hold.accounts) end
end

local function overrun_of(used, held)
  local over = {}
  for unit = 1, 3 do over[unit] = math.max(0, used[unit] - held[unit]) end
  return over
end

-- Subtract `freed` from the accounts' reserved amounts and add `booked` to the settled ones, in memory.
local function move(accounts, freed, booked)
  for _, account in ipairs(accounts) do
    for unit = 1, 3 do
      -- An account that was forgotten or changed by hand must not end with a negative hold, which would be free money.
      account.reserved[unit] = math.max(0, account.reserved[unit] - freed[unit])
      -- A full counter refuses everything anyhow, and booking must not fail.
      account.settled[unit] = math.min(math.max(0, account.settled[unit] + booked[unit]), AMOUNT_MAX)
    end
  end
end

-- Reads that fail for a key of a wrong type, before anything is written.
local function check_indices()
  redis.call('ZCARD', KEYS[3])
  redis.call('XLEN', KEYS[4])
  redis.call('ZCARD', KEYS[5])
end

local function emit(id, kind, amount, overrun, now_ms, draft, detail)
  redis.call('XADD', KEYS[4], '*', 'id', id, 'kind', kind, 'amount', amount_text(amount), 'overrun', amount_text(overrun),
    'at_ms', number_text(now_ms), 'draft', draft, 'detail', detail)
end

local function write_resolution(hold, id, accounts, now_ms)
  keep_time()
  for _, account in ipairs(accounts) do write_account(account, KEYS[5], now_ms) end
  redis.call('HSET', hold.key, 'state', hold.state, 'booked', amount_text(hold.booked), 'overrun', amount_text(hold.overrun),
    'resolver', hold.resolver)
  redis.call('ZREM', KEYS[3], id)
  local keep_ms = hold.state == 'expired' and EXPIRED_KEEP_MS or RESOLVED_KEEP_MS
  redis.call('ZADD', KEYS[5], number_text(now_ms + keep_ms), hold.key)
end

-- {time written (0: nothing was), state, first, booked, overrun, balances}
local function resolution(written_ms, hold, first, accounts)
  local reply = {written_ms, hold.state, first and 1 or 0}
  put_amount(reply, hold.booked)
  put_amount(reply, hold.overrun)
  local index = 0
  for text in string.gmatch(hold.limits, '[^\n]+') do
    index = index + 1
    put_balance(reply, accounts[index], effective_limit(accounts[index], limit_of(text, hold.key), NO_LIMIT))
  end
  return reply
end

local function settle(hold, id, used, detail, resolver, now_ms)
  check_names(hold)
  check_indices()
  local accounts = accounts_from(6)
  if hold.state ~= 'pending' and hold.state ~= 'expired' then
    return resolution(0, hold, hold.resolver == resolver, accounts)
  end
  local before, told = hold.booked, hold.overrun
  local freed, kind, entry_id = hold.held, 'settled', id
  if hold.state == 'expired' then
    freed, kind, entry_id = {0, 0, 0}, 'late', id .. ':late'
  end
  local added = {used[1] - before[1], used[2] - before[2], used[3] - before[3]}
  move(accounts, freed, added)
  hold.state, hold.booked, hold.overrun, hold.resolver = kind, used, overrun_of(used, hold.held), resolver
  local over = {hold.overrun[1] - told[1], hold.overrun[2] - told[2], hold.overrun[3] - told[3]}
  write_resolution(hold, id, accounts, now_ms)
  emit(entry_id, kind, added, over, now_ms, hold.draft, detail)
  redis.call('HDEL', hold.key, 'draft')
  return resolution(now_ms, hold, true, accounts)
end
