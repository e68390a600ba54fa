-- The same decision as `fit` in policies/reservation.py: change both or neither; one table of cases tests both.
-- Holds are {limit = {…}, tighten = {…}, enforce = bool}; indices count from 1 here.
local SEVERITY = {gate = 1, too_large = 2, exceeded = 3, busy = 4}

-- Exact floor division: a quotient of doubles may be rounded up to the next integer, but a remainder is exact.
local function floor_div(dividend, divisor)
  local rest = math.fmod(dividend, divisor)
  if rest < 0 then rest = rest + divisor end
  return (dividend - rest) / divisor
end

local function amount_at(demand, output_tokens)
  local produced = demand.choices * output_tokens
  return {
    demand.prompt_tokens + produced,
    demand.prompt_nano_usd + produced * demand.output_nano_usd_per_token,
    demand.requests,
  }
end

local function verdict_of(hold, account, needed, extending, held)
  if account.gate ~= 'open' and not extending then return 'gate', 0 end
  local limit = account.limit
  local busy_unit
  for unit = 1, 3 do
    local most, wanted = limit[unit], needed[unit]
    if most and wanted ~= 0 and wanted > most - account.settled[unit] - account.reserved[unit] then
      if held[unit] + wanted > most then return 'too_large', unit end
      if held[unit] + wanted > most - account.settled[unit] then return 'exceeded', unit end
      busy_unit = busy_unit or unit
    end
  end
  if busy_unit then return 'busy', busy_unit end
end

local function output_room(demand, account)
  local limit = account.limit
  local room = demand.output_tokens_max
  if limit[1] then
    local free = limit[1] - account.settled[1] - account.reserved[1] - demand.prompt_tokens
    room = math.min(room, floor_div(free, demand.choices))
  end
  if limit[2] and demand.output_nano_usd_per_token > 0 then
    local free = limit[2] - account.settled[2] - account.reserved[2] - demand.prompt_nano_usd
    room = math.min(room, floor_div(free, demand.output_nano_usd_per_token * demand.choices))
  end
  return math.max(room, demand.output_tokens_min)
end

-- Output tokens for each choice, or nil and {index, reason, unit} of the account that refuses; and the observed accounts that would refuse.
local function fit(demand, holds, accounts, extending, held)
  local needed = amount_at(demand, demand.output_tokens_min)
  local refused, breaches = nil, {}
  local output_tokens = demand.output_tokens_max
  for index, hold in ipairs(holds) do
    local account = accounts[index]
    account.limit = effective_limit(account, hold.limit, hold.tighten)
    local reason, unit = verdict_of(hold, account, needed, extending, held)
    if not reason then
      if hold.enforce then output_tokens = math.min(output_tokens, output_room(demand, account)) end
    elseif hold.enforce or reason == 'gate' then
      if not refused or SEVERITY[reason] < SEVERITY[refused[2]] then refused = {index, reason, unit} end
    else
      breaches[#breaches + 1] = index - 1
    end
  end
  if refused then return nil, refused, needed, breaches end
  return output_tokens, nil, needed, breaches
end

local function demand_of(list)
  return {
    prompt_tokens = list[1], output_tokens_max = list[2], output_tokens_min = list[3], prompt_nano_usd = list[4],
    output_nano_usd_per_token = list[5], choices = list[6], requests = list[7],
  }
end

local function holds_of(list)
  local holds = {}
  for index, one in ipairs(list) do
    holds[index] = {limit = triple_at(one, 1), tighten = triple_at(one, 4), enforce = one[7], keep_ms = one[8]}
  end
  return holds
end

-- {time written, reason, index, unit, needed, now, balances in the order of the holds}
local function refusal(written_ms, refused, needed, holds, accounts, now_ms)
  local index, reason, unit = refused[1], refused[2], refused[3]
  local reply = {written_ms, reason, index - 1, unit, needed[unit] or 0, now_ms}
  for place_of, account in ipairs(accounts) do
    put_balance(reply, account, effective_limit(account, holds[place_of].limit, holds[place_of].tighten))
  end
  return reply
end

-- {time written, output tokens, held, deadline, now, breaches, balances in the order of the holds}
local function grant(written_ms, output_tokens, held, deadline_ms, now_ms, breaches, holds, accounts)
  local reply = {written_ms, output_tokens, held[1], held[2], held[3], deadline_ms, now_ms, breaches}
  for index, account in ipairs(accounts) do
    -- Without a decision (a repeated request) the limit has not been computed yet.
    put_balance(reply, account, account.limit or effective_limit(account, holds[index].limit, holds[index].tighten))
  end
  return reply
end

-- Remember what a caller tightens an account to, in memory. Returns whether that is lower than before.
local function tighten(account, by)
  if by == NO_LIMIT then return false end
  local old = account.tightened
  local new = {least(old[1], by[1]), least(old[2], by[2]), least(old[3], by[3])}
  if new[1] == old[1] and new[2] == old[2] and new[3] == old[3] then return false end
  account.tightened = new
  return true
end

-- Put `more` on an account, in memory.
local function place(account, hold, more)
  for unit = 1, 3 do
    account.reserved[unit] = account.reserved[unit] + more[unit]
    if account.settled[unit] + account.reserved[unit] > AMOUNT_MAX then fault('OVERFLOW', account.key) end
  end
  tighten(account, hold.tighten)
  account.keep_ms = hold.keep_ms
end

-- The limits of a chain, kept with the reservation: its final balances are reported against them.
local function limits_text(holds)
  local texts = {}
  for index, hold in ipairs(holds) do texts[index] = limit_text(hold.limit) end
  return table.concat(texts, '\n')
end
