-- The oldest events that are neither acknowledged nor leased by another consumer. KEYS: meta, outbox, leases. ARGV[4] consumer,
-- ARGV[5] how many, ARGV[6] the lease in ms; 0 only peeks, and returns positions without fields.
-- Replies {time written, [[position, fields], …]}.
local AT_ONCE = 1000 -- the most arguments of one command
local now_ms = enter()
local wanted = tonumber(ARGV[5])
local found, start = {}, '-'
redis.call('HLEN', KEYS[3])
while #found < wanted do
  local batch, ids = redis.call('XRANGE', KEYS[2], start, '+', 'COUNT', math.min(wanted, AT_ONCE)), {}
  if #batch == 0 then break end
  for index, entry in ipairs(batch) do ids[index] = entry[1] end
  local leases = redis.call('HMGET', KEYS[3], unpack(ids))
  for index, entry in ipairs(batch) do
    local until_ms, holder = string.match(leases[index] or '', '^(%d+) (.*)$')
    if not until_ms or holder == ARGV[4] or tonumber(until_ms) <= now_ms then found[#found + 1] = entry end
    if #found == wanted then break end
  end
  start = '(' .. batch[#batch][1]
end
if #found == 0 then return {0, found} end
if ARGV[6] == '0' then
  for _, entry in ipairs(found) do entry[2] = {} end
  return {0, found}
end
keep_time()
local lease = number_text(now_ms + tonumber(ARGV[6])) .. ' ' .. ARGV[4]
local fields = {}
for index, entry in ipairs(found) do
  fields[#fields + 1], fields[#fields + 2] = entry[1], lease
  if #fields == 2 * AT_ONCE or index == #found then
    redis.call('HSET', KEYS[3], unpack(fields))
    fields = {}
  end
end
return {now_ms, found}
