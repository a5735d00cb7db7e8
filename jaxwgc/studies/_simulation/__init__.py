"""Simulated rounds: times are drawn, rules end the rounds, distinct masks are decoded.

`_rules` checks rules against codes. `_program_arguments` makes delay models and rules
arguments of compiled programs. `_rounds` draws times and applies waiting rules to them.
`_masks` decodes the distinct masks of the messages that arrived. `_search` ends rounds
that wait until they decode.
"""
