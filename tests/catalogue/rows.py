"""All rows of the catalogue."""

from jaxwgc import codes, corruptions, decoders, stragglers
from tests.catalogue import codes as code_rows
from tests.catalogue import corruptions as corruption_rows
from tests.catalogue import decoders as decoder_rows
from tests.catalogue import (
    delay_laws,
    embeddings,
    functions,
    samplers,
    scores,
    solvers,
    straggler_models,
    waiting_rules,
)

# A module, the base class of what its constructors make, and the file with their rows.
PROTOCOLS = [
    (codes, codes.GradientCode, code_rows),
    (decoders, decoders.Decoder, decoder_rows),
    (stragglers, stragglers.DelayModel, delay_laws),
    (stragglers, stragglers.WaitingRule, waiting_rules),
    (stragglers, stragglers.StragglerModel, straggler_models),
    (corruptions, corruptions.CorruptionModel, corruption_rows),
]
# The functions of sketching.
SKETCHING = [*scores.ROWS, *samplers.ROWS, *embeddings.ROWS, *solvers.ROWS]
# Rows that have all parameters of their constructor or function.
COMPLETE_ROWS = [row for _, _, file in PROTOCOLS for row in file.ROWS] + SKETCHING
COMPLETE_ROWS.extend(solvers.LINEAX_ROWS)
EVERY_ROW = [*COMPLETE_ROWS, *functions.ROWS]
