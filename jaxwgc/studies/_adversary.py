"""Adversarial stragglers: the worst pattern for a code, in every round."""

from jaxwgc.codes import GradientCode
from jaxwgc.decoders import DecoderLike
from jaxwgc.stragglers import StragglerModel, fixed
from jaxwgc.studies._worst_pattern import worst_pattern


def adversarial(
    code: GradientCode,
    num_stragglers: int,
    decoder: DecoderLike = None,
    *,
    max_patterns: int = 50_000,
) -> StragglerModel:
    """Returns a straggler model of the s workers with the largest decoding error.

    The pattern is found once by `jaxwgc.studies.worst_pattern`: exactly if there are
    few patterns of s stragglers, otherwise by a search. These workers are lost in every
    round. A round takes one unit.

    Args:
      code: Gradient code to attack. Not traced.
      num_stragglers: s, at least 0 and less than the number of workers.
      decoder: See `jaxwgc.decoding_weights`.
      max_patterns: See `jaxwgc.studies.worst_pattern`.

    Returns:
      A straggler model. Times are 1 for workers that respond and infinity for the
      others, which have finished no parts. Keys are not used.

    Raises:
      ValueError: If s is negative or not less than the number of workers, the decoder
        does not fit the code, or (in `init` or `sample`) the number of workers differs
        from the code's.
      TypeError: If code is not a GradientCode or is traced, or an integer is not an
        int.

    Example:
      >>> import jax, jaxwgc
      >>> code = jaxwgc.codes.fractional_repetition(6, num_stragglers=1)
      >>> model = jaxwgc.studies.adversarial(code, 2)
      >>> arrivals, _ = model.sample(jax.random.key(0), model.init(6), code.loads)
      >>> arrivals.received
      Array([False,  True,  True, False,  True,  True], dtype=bool)

    References:
      Kadhe, Koyluoglu, Ramchandran, "Gradient coding based on block designs for
      mitigating adversarial stragglers", 2019; Charles, Papailiopoulos, Ellenberg,
      "Approximate gradient coding via sparse random graphs", 2017.
    """
    return fixed(
        worst_pattern(code, num_stragglers, decoder, max_patterns=max_patterns)
    )
