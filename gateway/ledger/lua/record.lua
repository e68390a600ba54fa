-- Append events without a reservation. KEYS: meta, outbox. ARGV[4] JSON [[id, kind, tokens, nano_usd, requests, overrun in the same
-- units, at_ms (0: now)], …]; then draft and detail of each in turn.
local now_ms = enter()
local entries = cjson.decode(ARGV[4])
redis.call('XLEN', KEYS[2])
keep_time()
for index, one in ipairs(entries) do
  local at_ms = one[9] > 0 and one[9] or now_ms
  redis.call('XADD', KEYS[2], '*', 'id', one[1], 'kind', one[2], 'amount', amount_text({one[3], one[4], one[5]}),
    'overrun', amount_text({one[6], one[7], one[8]}), 'at_ms', number_text(at_ms),
    'draft', ARGV[3 + 2 * index], 'detail', ARGV[4 + 2 * index])
end
return {now_ms}
