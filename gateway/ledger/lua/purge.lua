-- Forget what is over its keep time. KEYS: meta, keep, then keys from the index. Replies {0, how many}.
local now_ms = enter()
redis.call('ZCARD', KEYS[2])

-- When a key may be forgotten. An account with open holds is in use, whatever the clock says: check it again next time.
local function forget_ms_of(key)
  local fields = redis.call('HMGET', key, 'state', 'used_ms', 'keep_ms', 'reserved', 'closes_ms')
  if fields[1] == 'pending' then return now_ms + 1 end
  if fields[5] then return integer(fields[5], key) end
  if not fields[2] then return tonumber(redis.call('ZSCORE', KEYS[2], key) or '0') end
  local forget_ms = integer(fields[2], key) + integer(fields[3], key)
  if forget_ms <= now_ms and fields[4] ~= '0 0 0' then return now_ms + 1 end
  return forget_ms
end

local over, later = {}, {}
for index = 3, #KEYS do
  local forget_ms = forget_ms_of(KEYS[index])
  if forget_ms <= now_ms then over[#over + 1] = KEYS[index] else later[KEYS[index]] = forget_ms end
end
for key, forget_ms in pairs(later) do redis.call('ZADD', KEYS[2], number_text(forget_ms), key) end
local count = 0
for _, key in ipairs(over) do
  count = count + redis.call('DEL', key)
  redis.call('ZREM', KEYS[2], key)
end
return {0, count}
