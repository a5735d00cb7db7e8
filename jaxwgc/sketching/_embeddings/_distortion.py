"""Distortion of a subspace by an embedding, and recommended sketch sizes."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxwgc._common import array_validation, conversions, validation
from jaxwgc._common.arrays import next_power_of_two, product
from jaxwgc.sketching._embeddings._dense_matrices import gaussian, rademacher
from jaxwgc.sketching._embeddings._embedding import Embedding
from jaxwgc.sketching._embeddings._hadamard_transform import srht
from jaxwgc.sketching._embeddings._sparse_matrices import (
    count_sketch,
    sparse_sign,
    sparse_stack,
)
from jaxwgc.sketching._samplers._row_sampling import row_sampling

_CONSTRUCTORS = (
    gaussian,
    rademacher,
    srht,
    count_sketch,
    sparse_sign,
    sparse_stack,
    row_sampling,
)

# Factor in the recommended size of sparse embeddings. Theory gives only the order of
# the size. The factor 4 is measured, see `recommended_sketch_size`.
_SPARSE_CONSTANT = 4


def embedding_distortion(basis: ArrayLike, embedding: Embedding) -> Array:
    """Computes by how much an embedding distorts lengths in a subspace.

    The distortion is ‖UᵀSᵀSU - I‖₂ for a basis U of the subspace. This is the
    largest |σ² - 1| over the singular values σ of SU. A distortion ε < 1 preserves
    the squared norm of every vector of the subspace up to the factor 1 ± ε.

    Args:
      basis: U, real of shape (N, p), with orthonormal columns, such as Q of a QR
        factorisation.
      embedding: S, with num_rows = N.

    Returns:
      A scalar.

    Raises:
      ValueError: If basis does not have two axes and num_rows rows, or (unless traced)
        its columns are not orthonormal.
      TypeError: If embedding is not an `Embedding`, or basis is not real.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxwgc import sketching
      >>> basis, _ = jnp.linalg.qr(jax.random.normal(jax.random.key(0), (1000, 5)))
      >>> size = sketching.recommended_sketch_size(sketching.gaussian, 5, epsilon=0.5)
      >>> embedding = sketching.gaussian(jax.random.key(1), size, 1000)
      >>> print(size, sketching.embedding_distortion(basis, embedding) < 0.5)
      486 True

    References:
      Woodruff, "Sketching as a tool for numerical linear algebra", Found. Trends Theor.
      Comput. Sci. 10 (2014), section 2.1, subspace embeddings.
    """
    validation.check_instance("embedding", embedding, Embedding)
    columns = conversions.float_array("basis", basis)
    sizes = (embedding.num_rows, "any")
    validation.check_shape("basis", columns, "(num_rows, p)", sizes)
    values = conversions.concrete(basis, columns.dtype)
    if values is not None:
        error = np.linalg.norm(values.T @ values - np.eye(values.shape[1]), 2)
        tolerance = 1e-3 if columns.dtype == jnp.float32 else 1e-8
        # The negated comparison also rejects NaN.
        if not error <= tolerance:
            raise ValueError(
                "basis must have orthonormal columns; got columns with ‖UᵀU - I‖₂ = "
                f"{error:.2g}"
            )
    return _distance_from_identity(embedding.apply(columns))


@jax.jit
def _distance_from_identity(columns: Array) -> Array:
    return jnp.max(jnp.abs(jnp.linalg.eigvalsh(product(columns.T, columns)) - 1))


def recommended_sketch_size(
    embedding: Callable[..., Embedding],
    num_columns: int,
    epsilon: float,
    delta: float = 0.05,
    *,
    num_rows: int | None = None,
    num_nonzeros: int = 8,
    coherence: float | None = None,
) -> int:
    """Computes a sketch size that is enough for a given distortion and probability.

    For any fixed subspace of dimension p, `embedding_distortion` is at most epsilon
    with a probability of at least 1 - delta. All sizes are upper bounds; a smaller
    sketch may be enough.

    - `gaussian`: ((√p + √(2 log(2 / δ))) / (√(1 + ε) - 1))².
    - `rademacher`: with τ = (1 - 2θ) ε, 2 (p log(1 + 2 / θ) + log(2 / δ)) / (τ² / 2 -
      τ³ / 3). This bounds the tail of a single vector over a net of fineness θ, for the
      best θ.
    - `srht`: M log(4p / δ) / h(ε). Here h(ε) = (1 + ε) log(1 + ε) - ε and M = (√p + √(8
      log(2N / δ)))². N is rounded up to a power of two. The size is at most N, which
      has the distortion 0.
    - `count_sketch`: p (p + 1) / (ε² δ).
    - `sparse_sign`: the size for `count_sketch`. If num_nonzeros is at least log(p / δ)
      / ε, the smaller 4 p log(p / δ) / ε² (at least num_nonzeros). The theorem gives
      the order only. The constant 4 is not proved; it holds in our measurements for p
      from 1 to 50 and ε from 0.3 to 0.9.
    - `sparse_stack`: the size for `sparse_sign`, rounded up to a multiple of
      num_nonzeros, so that all blocks have an equal size. Both theorems hold for it.
    - `row_sampling`: μ log(2p / δ) / h(ε) with the coherence μ.

    Args:
      embedding: The constructor of the embedding, one of these seven.
      num_columns: p, the dimension of the subspace, at least 1.
      epsilon: ε, between 0 and 1.
      delta: δ, between 0 and 1.
      num_rows: N; required for `srht`, otherwise unused.
      num_nonzeros: The argument of `sparse_sign` and `sparse_stack`.
      coherence: μ, the largest ratio of a row's leverage score to its sampling
        probability. It is p (the default) for sampling by exact scores, and N times the
        largest score for uniform sampling.

    Returns:
      The size, an int. If it exceeds num_rows, a sketch saves nothing.

    Raises:
      ValueError: If the embedding is unknown, epsilon or delta is not between 0 and 1,
        a size is below 1, coherence is below num_columns, or `srht` is given without
        num_rows.
      TypeError: If a size is not an int, or another number is not a real scalar.

    Example:
      >>> from jaxwgc import sketching
      >>> sketching.recommended_sketch_size(sketching.gaussian, 20, epsilon=0.5)
      1024
      >>> sketching.recommended_sketch_size(sketching.count_sketch, 20, epsilon=0.5)
      33600

    References:
      Davidson and Szarek, "Local operator theory, random matrices and Banach spaces",
      2001, Theorem II.13, for `gaussian`. Achlioptas, "Database-friendly random
      projections", J. Comput. Syst. Sci. 66 (2003), the tails behind Theorem 1.1, with
      Vershynin, "High-dimensional probability", 2018, sections 4.2 and 4.4 (nets), for
      `rademacher`. Tropp,
      "Improved analysis of the subsampled randomized Hadamard transform", Adv. Adapt.
      Data Anal. 3 (2011), Lemmas 3.3 and 3.4, for `srht`. Nelson and Nguyen, "OSNAP",
      FOCS 2013, Theorem 3, and Meng and Mahoney, "Low-distortion subspace embeddings in
      input-sparsity time and applications to robust linear regression", STOC 2013,
      Theorem 1, for `count_sketch`. Cohen, "Nearly tight oblivious subspace embeddings
      by trace inequalities", SODA 2016, for `sparse_sign`. Tropp, "An
      introduction to matrix concentration inequalities", Found. Trends Mach. Learn. 8
      (2015), Theorem 5.1.1, for `row_sampling`.
    """
    if embedding not in _CONSTRUCTORS:
        names = ", ".join(constructor.__name__ for constructor in _CONSTRUCTORS)
        raise ValueError(f"embedding must be one of {names}; got {embedding!r}")
    p = validation.check_int("num_columns", num_columns, minimum=1)
    array_validation.check_share("epsilon", epsilon)
    array_validation.check_share("delta", delta)
    num_nonzeros = validation.check_int("num_nonzeros", num_nonzeros, minimum=1)
    if num_rows is not None:
        num_rows = validation.check_int("num_rows", num_rows, minimum=1)
    epsilon = float(epsilon)
    delta = float(delta)
    # Exponent of the matrix Chernoff bound for the largest singular value. The exponent
    # for the smallest singular value is larger, so that its bound holds, too.
    chernoff = (1 + epsilon) * math.log1p(epsilon) - epsilon
    if embedding is gaussian:
        deviation = math.sqrt(p) + math.sqrt(2 * math.log(2 / delta))
        size = (deviation / (math.sqrt(1 + epsilon) - 1)) ** 2
    elif embedding is rademacher:
        fineness = np.linspace(0.001, 0.4, 400)
        target = (1 - 2 * fineness) * epsilon
        tail = p * np.log1p(2 / fineness) + math.log(2 / delta)
        size = float(np.min(2 * tail / (target**2 / 2 - target**3 / 3)))
    elif embedding is srht:
        if num_rows is None:
            raise ValueError("num_rows must be given for srht; got None")
        padded = next_power_of_two(num_rows)
        # Half of δ is for rows that stay large after the transform, half for sampling.
        spread = math.sqrt(p) + math.sqrt(8 * math.log(2 * padded / delta))
        size = min(spread**2 * math.log(4 * p / delta) / chernoff, padded)
    elif embedding is row_sampling:
        if coherence is None:
            coherence = p
        array_validation.check_number("coherence", coherence, minimum=p)
        size = float(coherence) * math.log(2 * p / delta) / chernoff
    else:
        size = p * (p + 1) / (epsilon**2 * delta)
        log = math.log(p / delta)
        has_more_nonzeros = embedding is not count_sketch
        if has_more_nonzeros and num_nonzeros * epsilon >= log:
            size = min(size, _SPARSE_CONSTANT * p * log / epsilon**2)
        if has_more_nonzeros:
            size = max(size, num_nonzeros)
        if embedding is sparse_stack:
            size = num_nonzeros * math.ceil(size / num_nonzeros * (1 - 1e-12))
    # The factor keeps rounding errors from raising an exact integer to the next one.
    return max(1, math.ceil(size * (1 - 1e-12)))
