"""How wrong messages are found: one file for each way, and one for what all need."""
