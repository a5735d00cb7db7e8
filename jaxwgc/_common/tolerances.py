"""Relative residuals up to which a round counts as decoded or exact."""

# Largest residual, relative to the norm of the target, with which a round counts as
# decoded.
DECODES = 1e-3
# Largest relative residual with which a round counts as decoded by a decoder that is
# inexact on purpose. With a residual of 1, a zero update would be as good.
APPROXIMATES = 1 - DECODES
# Largest relative residual that is attributed to rounding, by the number of bits of the
# dtype. For 32 bits it is a tenth of `DECODES`.
ROUNDING = {32: 1e-4, 64: 1e-10}
