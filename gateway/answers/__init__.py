"""Answers that were paid for and may be given once more: where they are kept, and who is busy with one."""
