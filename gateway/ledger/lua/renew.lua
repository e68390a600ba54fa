-- Move deadlines. KEYS: meta, due, holds. ARGV[4] JSON [ttl_ms, [[id, tokens, nano_usd, requests, on_lost ('': as before)], …]] in
-- the order of the holds. Replies {time written, ids that are not pending any more}.
local now_ms = enter()
local request = cjson.decode(ARGV[4])
redis.call('ZCARD', KEYS[2])
local pending, gone = {}, {}
for index, one in ipairs(request[2]) do
  local key = KEYS[index + 2]
  local fields = redis.call('HMGET', key, 'state', 'progress')
  if fields[1] == 'pending' then
    local progress = amount_of(fields[2], key)
    for unit = 1, 3 do progress[unit] = math.max(progress[unit], one[unit + 1]) end
    local text, on_lost = amount_text(progress), one[5]
    -- Change it to released only while no use was reported, because this message may arrive after a later one.
    if on_lost == 'release' and text ~= '0 0 0' then on_lost = '' end
    pending[#pending + 1] = {key, one[1], text, number_text(now_ms + request[1]), on_lost}
  else
    gone[#gone + 1] = one[1]
  end
end
if #pending > 0 then keep_time() end
for _, one in ipairs(pending) do
  redis.call('HSET', one[1], 'progress', one[3], 'deadline_ms', one[4])
  if one[5] ~= '' then redis.call('HSET', one[1], 'on_lost', one[5]) end
  redis.call('ZADD', KEYS[2], one[4], one[2])
end
return {#pending > 0 and now_ms or 0, gone}
