"""Comparison of codes, delay models and waiting rules in one study.

Names and rules of the cells come from `_inputs`. `_cells` simulates the rounds of all
cells by `_rounds`, and decodes their distinct masks by `_masks`. The result is in
`_comparison`.
"""
