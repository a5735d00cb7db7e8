"""The adversary: the same stragglers every round, those that hurt the code most."""

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
    """Loses the s workers that make the decoding error largest; one unit a round.

    The pattern is found once, here, by `jaxwgc.studies.worst_pattern`: exactly where
    there are few patterns of s stragglers, by a search otherwise. Every round loses it.

    Args:
      code: the gradient code to be hurt. Not traced.
      num_stragglers: s, at least 0 and less than the number of workers.
      decoder: See `jaxwgc.decoding_weights`.
      max_patterns: See `jaxwgc.studies.worst_pattern`.

    Returns:
      A straggler model. Times are 1 for the workers that answer and infinity for the
      others, which have finished no part. Keys are not used.

    Raises:
      ValueError: If s is negative or not less than the number of workers, the
        decoder does not fit the code, or (at `init` or `sample`) there are not as many
        workers as the code has.
      TypeError: If the code is none or is traced, or the integers are not ints.

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
