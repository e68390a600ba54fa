"""Stored answers that may be returned again, and claims on answers that are being made."""
