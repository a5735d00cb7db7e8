"""Relative residuals that count as decoded, or as rounding."""

# Largest residual, relative to the norm of the target, with which a round counts as
# decoded.
DECODES = 1e-3
# Largest relative residual for decoders that are inexact on purpose. Their result is
# then nearer to the gradient than a zero update.
APPROXIMATES = 1 - DECODES
# Relative residual that is attributed to rounding, by the number of bits of the dtype.
# In float32 it is a tenth of `DECODES`.
ROUNDING = {32: 1e-4, 64: 1e-10}
