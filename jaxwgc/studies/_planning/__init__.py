"""Which code, how long to wait, and whether to code at all."""
