"""The configuration: its models, reading and checking a file, and the sections of LiteLLM's own configuration."""
