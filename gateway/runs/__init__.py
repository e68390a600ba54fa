"""Runs: what this process remembers of them, and planning, showing and steering them."""
