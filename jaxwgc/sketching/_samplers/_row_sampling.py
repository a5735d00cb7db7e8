"""An embedding that samples rows."""

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxwgc._common import validation
from jaxwgc._common.probabilities import distribution
from jaxwgc.sketching._embeddings._embedding import Embedding, check_sizes
from jaxwgc.sketching._linalg.entries import (
    Entries,
    bucket_entries,
    slots_of_rows,
)
from jaxwgc.sketching._samplers._sample_rows import RowSample, sample_rows


def row_sampling(
    key: Array, sketch_size: int, num_rows: int, probabilities: ArrayLike | None = None
) -> Embedding:
    """Returns an embedding that samples rows with replacement, and scales them.

    Every row of S has a single entry. It is accurate if the leverage scores of the
    matrix are nearly proportional to the probabilities. Otherwise it may miss important
    rows.

    Args:
      key: PRNG key of either kind.
      sketch_size: The number of draws, at least 1. A row that is drawn several times
        takes one row of the sketch; unused rows are zero.
      num_rows: N, the number of rows of the matrices it multiplies, at least 1.
      probabilities: (num_rows,), not negative; normalised to sum to 1. Leverage scores
        are allowed. Uniform by default. Rounded to float32, so that S does not depend
        on their precision.

    Returns:
      An `Embedding`. If traced probabilities are negative, NaN, infinite or all zero,
      its products are NaN.

    Raises:
      ValueError: If a size is less than 1, or probabilities have another shape or
        (unless traced) are negative, NaN, infinite or all zero.
      TypeError: If a size is not an int, the key is no PRNG key, or probabilities are
        not real.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxwgc import sketching
      >>> scores = jnp.array([1.0, 0.0, 1.0, 0.0])
      >>> embedding = sketching.row_sampling(jax.random.key(0), 1, 4, scores)
      >>> print(embedding.matrix().sum())
      1.4142135

    References:
      Drineas, Mahoney and Muthukrishnan, "Sampling algorithms for l2 regression and
      applications", SODA 2006.
    """
    key, sketch_size, num_rows = check_sizes(key, sketch_size, num_rows)
    if probabilities is None:
        chances = jnp.full(num_rows, 1 / num_rows, jnp.float32)
    else:
        values, valid = distribution("probabilities", probabilities)
        validation.check_shape("probabilities", values, "(num_rows,)", (num_rows,))
        # Invalid traced probabilities become NaN, so that all products are NaN.
        chances = jnp.where(valid, values, jnp.nan).astype(jnp.float32)
    return _RowEmbedding(key, sketch_size, num_rows, probabilities=chances)


class _RowEmbedding(Embedding):
    probabilities: Array

    def _drawn(self) -> RowSample:
        return sample_rows(self.key, self.probabilities, self.sketch_size)

    def apply_to_columns(self, arrays: list[Array]) -> list[Array]:
        sample = self._drawn()
        return [self._filled(array[sample.indices], sample) for array in arrays]

    def apply_to_entries(self, entries: Entries, shape: tuple[int, ...]) -> Array:
        sample = self._drawn()
        num_slots = sample.indices.shape[0]
        slots = slots_of_rows(sample.indices, sample.scale, shape[0])[None]
        ones = jnp.ones_like(slots)
        rows = bucket_entries(entries, slots, ones, (num_slots, shape[1]))
        return self._filled(rows, sample)

    def _filled(self, rows: Array, sample: RowSample) -> Array:
        """Scales sampled rows, and pads the sketch with rows of zeros."""
        rows = rows * sample.scale.astype(rows.dtype)[:, None]
        return jnp.pad(rows, [(0, self.sketch_size - rows.shape[0]), (0, 0)])

    def to_array(self, dtype: np.dtype) -> Array:
        sample = self._drawn()
        zeros = jnp.zeros((self.sketch_size, self.num_rows), dtype)
        slots = jnp.arange(sample.indices.shape[0])
        entries = sample.scale.astype(dtype)
        return zeros.at[slots, sample.indices].set(entries)
