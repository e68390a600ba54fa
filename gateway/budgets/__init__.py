"""The budgets that apply: which accounts a call is reserved on, their balances, and suggested limits."""
