-- The balances of accounts. KEYS: meta, accounts. Limits are those that the ledger itself knows. Replies {0, balances}.
enter()
local reply = {0}
for _, account in ipairs(accounts_from(2)) do
  put_balance(reply, account, effective_limit(account, NO_LIMIT, NO_LIMIT))
end
return reply
