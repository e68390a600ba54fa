-- Resolve a reservation whose deadline has passed: charge all of it (or its reported use, if that is more), or release it. KEYS: meta,
-- hold, due, outbox, keep, accounts. ARGV[4] id. Replies {time written (0: it was not due), owner, booked, held}.
local now_ms = enter()
local hold = read_hold(KEYS[2])
local lost = redis.call('HMGET', KEYS[2], 'on_lost', 'owner')
check_indices()
if not hold or hold.state ~= 'pending' then
  -- An index entry without a pending reservation was left by manual changes. Drop it, or the sweeper meets it for ever.
  redis.call('ZREM', KEYS[3], ARGV[4])
  return {0}
end
if hold.deadline_ms > now_ms then
  -- The index has an earlier time than the reservation, whose time counts.
  redis.call('ZADD', KEYS[3], number_text(hold.deadline_ms), ARGV[4])
  return {0}
end
check_names(hold)
local accounts = accounts_from(6)
if lost[1] == 'charge' then
  for unit = 1, 3 do hold.booked[unit] = math.max(hold.held[unit], hold.progress[unit]) end
  hold.overrun = overrun_of(hold.booked, hold.held)
end
move(accounts, hold.held, hold.booked)
hold.state = 'expired'
write_resolution(hold, ARGV[4], accounts, now_ms)
emit(ARGV[4] .. ':lost', 'expired', hold.booked, hold.overrun, now_ms, hold.draft, '')
local reply = {now_ms, lost[2]}
put_amount(reply, hold.booked)
put_amount(reply, hold.held)
return reply
