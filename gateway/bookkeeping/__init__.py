"""Keeping ledger and store in step: moving usage events, renewing and sweeping holds, comparing and rebuilding."""
