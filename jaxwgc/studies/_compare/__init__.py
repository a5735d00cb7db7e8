"""Comparison of codes, delay models and waiting rules in one study.

Names and rules of the cells come from `_inputs`. `_rounds` simulates rounds, `_masks`
decodes the distinct masks of a code, and `_comparison` holds the result.
"""
