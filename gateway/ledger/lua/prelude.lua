-- Shared by all ledger scripts. Layout 1 of the keys of a project, all with the hash tag {<project>}:
--   meta           hash    epoch, layout, now_ms (the ledger's time at the last write; it never goes back), wall_ms (Redis's then)
--   account:<name> hash    settled, reserved (amounts), tightened, override (limits), gate, keep_ms, used_ms
--   hold:<id>      hash    a reservation: state, accounts, limits, owner, on_lost, draft, held, output_tokens, deadline_ms, …
--   run:<workflow> hash    the implicit run: run, closes_ms
--   due            zset    ids of pending reservations by deadline
--   keep           zset    keys of accounts, resolved reservations and runs, by a time before which they must be kept
--   outbox, leases stream and hash: usage events on their way to the store, and who is delivering them
-- An amount is written 'tokens nano_usd requests', a limit the same with '-' for no limit.
-- A script reads and validates everything first and only then writes, because an error in mid-script does not undo its writes.
-- Lua numbers are doubles, exact up to 2^53 - 1: nothing above that is ever written.
local LAYOUT = 1
local AMOUNT_MAX = 9007199254740991
local NO_LIMIT, NO_LIMIT_TEXT = {false, false, false}, '- - -'
-- KEEP_MS of policies/reservation.py: how long an account is kept that a late settlement makes again after it was forgotten.
local ACCOUNT_KEEP_MS = 7 * 86400000

-- Printing an integer with %d takes a third of the time of %.0f, but would truncate it if a C long has 32 bits.
local WHOLE = string.format('%d', AMOUNT_MAX) == '9007199254740991' and '%d' or '%.0f'
local AMOUNT = WHOLE .. ' ' .. WHOLE .. ' ' .. WHOLE

local function fault(code, text)
  -- A plain text, because Redis 6.2 cannot raise a table. The prefix that Redis adds differs by version (redis_connection.py).
  error('FAREBOX_' .. code .. ' ' .. text, 0)
end

local function integer(text, where)
  local value = tonumber(text)
  if not value or value ~= math.floor(value) or math.abs(value) > AMOUNT_MAX then
    fault('DAMAGED', where)
  end
  return value
end

local function amount_of(text, where)
  if not text or text == '0 0 0' then return {0, 0, 0} end
  local tokens, nano_usd, requests = string.match(text, '^(%d+) (%d+) (%d+)$')
  if not tokens then fault('DAMAGED', where) end
  tokens, nano_usd, requests = tonumber(tokens), tonumber(nano_usd), tonumber(requests)
  if tokens > AMOUNT_MAX or nano_usd > AMOUNT_MAX or requests > AMOUNT_MAX then fault('DAMAGED', where) end
  return {tokens, nano_usd, requests}
end

local function limit_of(text, where)
  if not text or text == NO_LIMIT_TEXT then return NO_LIMIT end
  local tokens, nano_usd, requests = string.match(text, '^([%d-]+) ([%d-]+) ([%d-]+)$')
  if not tokens then fault('DAMAGED', where) end
  local function one(word)
    if word == '-' then return false end
    return integer(word, where)
  end
  return {one(tokens), one(nano_usd), one(requests)}
end

local function amount_text(amount)
  return string.format(AMOUNT, amount[1], amount[2], amount[3])
end

local function limit_text(limit)
  if limit == NO_LIMIT then return NO_LIMIT_TEXT end
  local function one(value)
    if value == false then return '-' end
    return string.format(WHOLE, value)
  end
  return one(limit[1]) .. ' ' .. one(limit[2]) .. ' ' .. one(limit[3])
end

local function number_text(value)
  return string.format(WHOLE, value)
end

-- The ledger's clock in ms: Redis TIME (or a test's clock), but never going back. When the server's clock is set back, this one goes on
-- at half pace (hence the half) until the server's has caught up. So no deadline comes early when the clock is corrected, and none
-- waits for ever.
local exact_ms, wall_ms

local function clock(last_ms, last_wall_ms)
  if ARGV[3] ~= '' then
    wall_ms = tonumber(ARGV[3])
  else
    local time = redis.call('TIME')
    wall_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
  end
  exact_ms = wall_ms
  if wall_ms < last_ms then exact_ms = last_ms + math.max(0, wall_ms - last_wall_ms) / 2 end
  return math.floor(exact_ms)
end

-- Every script begins here. KEYS[1] is the project's meta hash; ARGV[1] the epoch that the caller knows ('*': none, while counters
-- are being restored), ARGV[2] the latest write time that the caller has seen, ARGV[3] the clock of a test.
local function enter()
  local meta = redis.call('HMGET', KEYS[1], 'epoch', 'layout', 'now_ms', 'wall_ms')
  if meta[2] and integer(meta[2], KEYS[1]) > LAYOUT then fault('LAYOUT', meta[2]) end
  local last_ms, last_wall_ms = tonumber(meta[3] or '0'), tonumber(meta[4] or '0')
  if not last_ms or not last_wall_ms then fault('DAMAGED', KEYS[1]) end
  if ARGV[1] ~= '*' then
    if not meta[1] or meta[1] == '' then fault('LOST', KEYS[1]) end
    if meta[1] ~= ARGV[1] then fault('EPOCH', meta[1]) end
    if last_ms < tonumber(ARGV[2]) then fault('ROLLBACK', number_text(last_ms)) end
  end
  return clock(last_ms, last_wall_ms)
end

local function keep_time()
  local form = exact_ms == math.floor(exact_ms) and WHOLE or '%.1f'
  redis.call('HSET', KEYS[1], 'now_ms', string.format(form, exact_ms), 'wall_ms', number_text(wall_ms))
end

local GATES = {open = true, paused = true, cancelled = true, completed = true, looping = true}

local function read_account(key)
  local fields = redis.call('HMGET', key, 'settled', 'reserved', 'tightened', 'override', 'gate', 'keep_ms')
  local keep_ms, tightened = fields[6] and integer(fields[6], key), limit_of(fields[3], key)
  if fields[5] and not GATES[fields[5]] then fault('DAMAGED', key) end
  return {
    key = key,
    settled = amount_of(fields[1], key),
    reserved = amount_of(fields[2], key),
    tightened = tightened,
    tightened_before = tightened,
    override = limit_of(fields[4], key),
    gate = fields[5] or 'open',
    keep_ms = keep_ms or ACCOUNT_KEEP_MS,
    kept_ms = keep_ms,
  }
end

local function write_account(account, keep_key, now_ms)
  redis.call('HSET', account.key, 'settled', amount_text(account.settled), 'reserved', amount_text(account.reserved),
    'used_ms', number_text(now_ms))
  if account.keep_ms ~= account.kept_ms or account.tightened ~= account.tightened_before then
    redis.call('HSET', account.key, 'tightened', limit_text(account.tightened), 'keep_ms', number_text(account.keep_ms))
  end
  -- The index has a lower bound of the time; the scripts that forget check the account itself.
  if not account.kept_ms or account.keep_ms < account.kept_ms then
    redis.call('ZADD', keep_key, number_text(now_ms + account.keep_ms), account.key)
  end
end

-- The limit that applies: the operator's override before the given one, but at most what callers tightened it to.
local function least(most, one, other)
  if one and (not most or one < most) then most = one end
  if other and (not most or other < most) then most = other end
  return most
end

local function effective_limit(account, limit, tighten)
  local over, tightened = account.override, account.tightened
  return {
    least(over[1] or limit[1], tightened[1], tighten[1]),
    least(over[2] or limit[2], tightened[2], tighten[2]),
    least(over[3] or limit[3], tightened[3], tighten[3]),
  }
end

-- Ten values of the reply per account: limit, settled, reserved (three each) and the gate.
local function put_balance(reply, account, limit)
  local settled, reserved, last = account.settled, account.reserved, #reply
  reply[last + 1], reply[last + 2], reply[last + 3] = limit[1], limit[2], limit[3]
  reply[last + 4], reply[last + 5], reply[last + 6] = settled[1], settled[2], settled[3]
  reply[last + 7], reply[last + 8], reply[last + 9] = reserved[1], reserved[2], reserved[3]
  reply[last + 10] = account.gate
end

local function put_amount(reply, amount)
  for unit = 1, 3 do reply[#reply + 1] = amount[unit] end
end

-- Three members of a decoded JSON array from `first` on, with null as false.
local function triple_at(list, first)
  local null, a, b, c = cjson.null, list[first], list[first + 1], list[first + 2]
  if a == null and b == null and c == null then return NO_LIMIT end
  return {a ~= null and a, b ~= null and b, c ~= null and c}
end

local function accounts_from(first)
  local accounts = {}
  for index = first, #KEYS do accounts[#accounts + 1] = read_account(KEYS[index]) end
  return accounts
end
