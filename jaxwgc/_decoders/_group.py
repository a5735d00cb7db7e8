"""Group decoding: the first answer of each group of workers that send the same."""

import jax
import jax.numpy as jnp

from jaxwgc._decoders._product import product


def group(
    received: jax.Array, groups: jax.Array, assignment: jax.Array, target: jax.Array
) -> jax.Array:
    """Zeros and ones that sum one answer a group, in the family that loses least.

    Exact to the last bit where every group of a family has an answer; otherwise the
    parts of the groups without one are lost, and no others.

    Args:
      received: bool (..., num_workers).
      groups: int (num_families, num_workers), see `GradientCode.groups`; a worker is
        in one family.
      assignment: bool (num_workers, num_parts).
      target: (num_parts,).

    Returns:
      (..., 1, num_workers) in JAX's default precision.
    """
    num_workers = received.shape[-1]
    dtype = jnp.result_type(float)
    groups = jnp.asarray(groups)
    member = groups >= 0
    same = (groups[:, :, None] == groups[:, None, :]) & member[:, :, None]
    same = same.any(axis=0)
    order = jnp.arange(num_workers)
    earlier = same & (order[:, None] < order)
    answers = received.astype(dtype)
    first = received & (product(answers, earlier.astype(dtype)) == 0)
    # By what is lost, which is exactly zero for a whole family, not by what is covered,
    # whose sum is rounded.
    silent = product(answers, same.astype(dtype)) == 0
    leader = ~earlier.any(axis=0)
    worth = product(jnp.asarray(assignment).astype(dtype), jnp.abs(target) ** 2)
    lost = product(jnp.where(silent & leader, worth, 0), member.T.astype(dtype))
    chosen = member[jnp.argmin(lost, axis=-1)]
    return jnp.where(first & chosen, 1, 0).astype(dtype)[..., None, :]
