"""All rows of the catalogue."""

from tests.catalogue import (
    codes,
    corruptions,
    decoders,
    delay_laws,
    embeddings,
    functions,
    samplers,
    scores,
    solvers,
    straggler_models,
    waiting_rules,
)

SKETCHING = (*scores.ROWS, *samplers.ROWS, *embeddings.ROWS, *solvers.ROWS)
# Constructors and functions, with all their parameters.
COMPLETE_ROWS = (
    *codes.ROWS,
    *decoders.ROWS,
    *delay_laws.ROWS,
    *waiting_rules.ROWS,
    *straggler_models.ROWS,
    *corruptions.ROWS,
    *SKETCHING,
)
EVERY_ROW = (*COMPLETE_ROWS, *functions.ROWS)
