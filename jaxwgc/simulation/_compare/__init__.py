"""Comparison of codes, delay models and waiting rules in one study.

Names and rules of the cells come from `_inputs`. `_cells` simulates the rounds of all
cells by `_trials`, and decodes their distinct masks. Their means have the intervals of
`_intervals`. The result is in `_comparison`.
"""
