"""How decoding weights are found: Lagrange interpolation and least squares."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap

# Moduli are split into a multiple of 1 / 2**10 (in log2), whose sums are exact in
# float32, and a remainder so small that the rounding of its sum does not matter.
_FRACTION_BITS = 10
# Lagrange weights that miss the target by more than this are tried again.
_LAGRANGE_TOLERANCE = 1e-4
# Singular values below this many sqrt(max(n, k)) eps of the largest count as zero.
_CUTOFF = 2
# Masks that are decomposed side by side: bounds memory, and LAPACK loops anyway.
_SVD_BATCH = 64


def product(left: jax.Array, right: jax.Array) -> jax.Array:
    """Matrix product in full precision.

    GPUs and TPUs round float32 operands to TF32 or bfloat16 unless asked not to, and
    decoding would amplify that.
    """
    return jnp.matmul(left, right, precision=jax.lax.Precision.HIGHEST)


def lagrange(received: jax.Array, point_step: int) -> jax.Array:
    """Weights that interpolate a polynomial at 0 from its values at roots of unity.

    a_i = prod_j alpha_j / (alpha_j - alpha_i) over the other workers j that answered.
    With delta = (p_j - p_i) mod n a factor has modulus 1 / (2 sin(pi delta / n)) and
    phase pi (2 delta - n) / (2n): log-moduli add, phases are integers modulo 4n, and
    a batch of masks is one product with fixed tables of shape (n, 3n).

    Args:
      received: bool (..., num_workers).
      point_step: the m of the code's points p_i = m * i mod n.

    Returns:
      Complex (..., num_workers) in JAX's default precision, zero at stragglers.
    """
    num_workers = received.shape[-1]
    dtype = jnp.result_type(float)
    points = point_step * np.arange(num_workers) % num_workers
    difference = (points[:, None] - points) % num_workers
    others = difference != 0
    modulus = 2 * np.sin(np.pi * difference / num_workers)
    log_modulus = -np.log2(modulus, where=others, out=np.zeros_like(modulus))
    coarse = np.round(log_modulus * 2**_FRACTION_BITS)
    remainder = log_modulus - coarse / 2**_FRACTION_BITS
    phase = np.where(others, 2 * difference - num_workers, 0)
    tables = jnp.asarray(np.concatenate([coarse, phase, remainder], 1), dtype)
    sums = product(received.astype(dtype), tables)
    coarse_sum, phase_sum, remainder_sum = jnp.split(sums, 3, axis=-1)

    # Exact integers from here on; sines, cosines and powers come from tables since
    # their arguments in radians would be rounded.
    coarse_sum = coarse_sum.astype(jnp.int32)
    exponent = coarse_sum >> _FRACTION_BITS
    fraction = coarse_sum & (2**_FRACTION_BITS - 1)
    powers = jnp.asarray(
        np.exp2(np.arange(2**_FRACTION_BITS) / 2**_FRACTION_BITS), dtype
    )
    weight_modulus = jnp.ldexp(powers[fraction] * jnp.exp2(remainder_sum), exponent)
    turns = phase_sum.astype(jnp.int32) % (4 * num_workers)
    angles = np.pi * np.arange(4 * num_workers) / (2 * num_workers)
    cosine = jnp.asarray(np.cos(angles), dtype)[turns]
    sine = jnp.asarray(np.sin(angles), dtype)[turns]
    weights = jax.lax.complex(weight_modulus * cosine, weight_modulus * sine)
    return jnp.where(received, weights, 0)


# Jitted so that calls outside of jit find the compiled function again.
@jax.jit
def least_squares(
    received: jax.Array, matrix: jax.Array, target: jax.Array
) -> jax.Array:
    """The a of least norm among those that minimise the norm of a^T B - target.

    By a singular value decomposition for every mask, so rank-revealing: directions
    below 2 sqrt(max(n, k)) eps of the largest singular value are left out. NumPy leaves
    out those below max(n, k) eps, which in float32 would cost codes of condition 1e5
    what they need. Rounding reached half a sqrt(n) eps, up to n = 400.

    Args:
      received: bool (..., num_workers).
      matrix: (num_workers, num_parts).
      target: (num_parts,).

    Returns:
      (..., num_workers) in the dtype of `matrix`, zero at stragglers.
    """
    eps = jnp.finfo(matrix.dtype).eps

    def of_one_mask(mask):
        rows = jnp.where(mask[:, None], matrix, 0)
        left, singular, right = jnp.linalg.svd(rows, full_matrices=False)
        cutoff = _CUTOFF * math.sqrt(max(matrix.shape)) * eps * singular[0]
        kept = singular > cutoff
        inverse = jnp.where(kept, 1 / jnp.where(kept, singular, 1), 0)

        def solve(target):
            coordinates = inverse * product(right.conj(), target)
            return jnp.where(mask, product(left.conj(), coordinates), 0)

        weights = solve(target)
        # One step of refinement: the decomposition is rounded more than its use is.
        return weights + solve(target - product(weights, matrix))

    masks = received.reshape(-1, received.shape[-1])
    if len(masks) <= _SVD_BATCH:
        weights = jax.vmap(of_one_mask)(masks)
    else:
        weights = jax.lax.map(of_one_mask, masks, batch_size=_SVD_BATCH)
    return weights.reshape(received.shape)


@functools.partial(jax.jit, static_argnames="point_step")
def lagrange_or_least_squares(
    received: jax.Array,
    matrix: jax.Array,
    target: jax.Array,
    num_required: int | jax.Array,
    point_step: int,
) -> jax.Array:
    """Lagrange weights, and least squares for the masks where those fall short.

    These are masks with fewer than `num_required` answers, where interpolation does
    not apply, and those with slack (more answers than parts, or than are required) on
    which Lagrange's weights amplify rounding so much that they miss the target by 1e-4
    of it. Without slack no other weights decode, and Lagrange's are as good as any.
    """
    weights = lagrange(received, point_step)
    miss = _relative_miss(weights, matrix, target)
    num_answers = received.sum(-1)
    has_slack = num_answers > jnp.minimum(num_required, matrix.shape[-1])
    amplified = has_slack & ~(miss <= _LAGRANGE_TOLERANCE)
    poor = (num_answers < num_required) | amplified
    return _replace_poor_weights(weights, received, poor, matrix, target)


def _relative_miss(weights, matrix, target):
    if matrix.ndim == 2:
        reached = product(weights, matrix)
    else:
        reached = product(weights[..., None, :], matrix)[..., 0, :]
    miss = jnp.linalg.norm(reached - target, axis=-1)
    scale = jnp.linalg.norm(target, axis=-1)
    return miss / jnp.where(scale > 0, scale, 1)


# A rule of its own for vmap: plain vmap would turn the conditions into selects and
# decompose every mask of a study when a handful need it, or none.
@custom_vmap
def _replace_poor_weights(weights, received, poor, matrix, target):
    """Least squares in the place of poor weights; batch axes may stand in front."""
    num_workers, num_parts = matrix.shape[-2:]
    batch = received.shape[:-1]

    def replace_one(operands):
        weights, received, poor, *own = operands
        own_matrix, own_target = own if own else (matrix, target)

        def solve():
            solved = least_squares(received, own_matrix, own_target)
            better = _relative_miss(solved, own_matrix, own_target) <= _relative_miss(
                weights, own_matrix, own_target
            )
            return jnp.where(better, solved, weights)

        return jax.lax.cond(poor, solve, lambda: weights)

    def replace_all():
        operands = [
            weights.reshape(-1, num_workers),
            received.reshape(-1, num_workers),
            poor.reshape(-1),
        ]
        if matrix.ndim > 2 or target.ndim > 1:
            matrices = jnp.broadcast_to(matrix, (*batch, num_workers, num_parts))
            targets = jnp.broadcast_to(target, (*batch, num_parts))
            operands += [
                matrices.reshape(-1, num_workers, num_parts),
                targets.reshape(-1, num_parts),
            ]
        return jax.lax.map(replace_one, tuple(operands)).reshape(weights.shape)

    return jax.lax.cond(poor.any(), replace_all, lambda: weights)


@_replace_poor_weights.def_vmap
def _replace_poor_weights_vmap(axis_size, in_batched, *operands):
    *mapped, matrix, target = operands
    *mapped_batched, matrix_batched, target_batched = in_batched
    mapped = [
        operand if batched else jnp.broadcast_to(operand, (axis_size, *operand.shape))
        for operand, batched in zip(mapped, mapped_batched, strict=True)
    ]
    num_batch_axes = mapped[1].ndim - 1
    if matrix_batched:
        matrix = _insert_axes(matrix, num_batch_axes + 2)
    if target_batched:
        target = _insert_axes(target, num_batch_axes + 1)
    return _replace_poor_weights(*mapped, matrix, target), True


def _insert_axes(operand, ndim):
    """Axes of length one behind the mapped axis, up to `ndim` axes."""
    own = operand.shape[1:]
    return operand.reshape(operand.shape[:1] + (1,) * (ndim - operand.ndim) + own)
