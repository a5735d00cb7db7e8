"""Optimizes the entries of encoding matrices for given stragglers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxwgc._common import array_validation, validation
from jaxwgc.codes import GradientCode
from jaxwgc.coding import decoding
from jaxwgc.decoders import LeastSquares
from jaxwgc.stragglers import StragglerModel

# Number of fresh rounds that compare the new code with the given code. Then the number
# of standard errors by which the mean error of the new code must be smaller.
_NUM_TEST_ROUNDS = 16_384
_STANDARD_ERRORS = 3.0
# Random change of the entries, relative to their root mean square. It moves the start
# away from saddle points.
_JITTER = 0.02


def learn_entries(
    code: GradientCode,
    model: StragglerModel,
    key: jax.Array,
    *,
    num_steps: int = 1500,
    batch_size: int = 256,
    learning_rate: float = 0.03,
) -> GradientCode:
    """Optimizes the entries of a code's encoding matrix for given stragglers.

    Minimises the mean least-squares decoding error over rounds of a straggler model, by
    Adam with a decaying step size. Decoding weights are constants in the gradient,
    since they minimise the error themselves.

    The new code is returned only if its error, on 16,384 fresh rounds and with
    least-squares decoding, is smaller by more than three standard errors of the
    difference; otherwise `code` is returned. Exact codes lose their guarantee in favour
    of a smaller mean: the new code has num_stragglers = 0.

    Args:
      code: Real gradient code with one message per worker and one segment. Not traced.
      model: Straggler model, e.g. `jaxwgc.stragglers.bernoulli(0.3)`.
      key: PRNG key of either kind, for the rounds.
      num_steps: Number of steps, at least 1.
      batch_size: Number of rounds per step, at least 1.
      learning_rate: Initial step size, relative to the root mean square of the entries;
        positive.

    Returns:
      A code decoded by least squares, or `code` itself.

    Raises:
      ValueError: If the code is complex or has several messages or segments, or an
        argument has an invalid value.
      TypeError: If an argument has the wrong type, or the code is traced.

    Example:
      >>> import jax
      >>> from jaxwgc import codes, simulation, stragglers
      >>> code = codes.regular_graph(jax.random.key(0), 10, copies=4)
      >>> learned = simulation.learn_entries(
      ...     code, stragglers.uniform(2), jax.random.key(1), num_steps=50
      ... )
      >>> bool((learned.assignment == code.assignment).all())
      True

    References:
      Optimal decoding as the objective: Charles, Papailiopoulos, Ellenberg,
      "Approximate gradient coding via sparse random graphs", 2017. The optimization of
      entries is new here.
    """
    GradientCode.check(code, concrete="the better of two codes is returned")
    code.check_plain("learn_entries")
    if code.is_complex:
        raise ValueError(f"code must be real; got {code}")
    loads = np.asarray(code.loads, np.float64)
    StragglerModel.check("model", model, loads)
    key = array_validation.check_key(key)
    num_steps = validation.check_int("num_steps", num_steps, minimum=1)
    batch_size = validation.check_int("batch_size", batch_size, minimum=1)
    array_validation.check_number(
        "learning_rate", learning_rate, positive=True, traceable=False
    )

    matrix = np.asarray(code.encoding_matrix, np.float64)
    assignment = np.asarray(code.assignment)
    if not matrix[assignment].any():
        return code
    scale = np.sqrt(np.mean(matrix[assignment] ** 2))
    decoders = code.decoders_of(LeastSquares) or (LeastSquares(),)
    learned = dataclasses.replace(
        code, encoding_matrix=matrix, num_stragglers=0, decoders=decoders
    )
    entries, difference, standard_error = _learn(
        model, num_steps, batch_size, learned, key, scale, learning_rate
    )
    is_better = difference < -_STANDARD_ERRORS * standard_error
    if not is_better:
        return code
    matrix = np.where(assignment, np.asarray(entries, np.float64), 0)
    return dataclasses.replace(learned, encoding_matrix=matrix)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _learn(model, num_steps, batch_size, code, key, scale, learning_rate):
    """Returns optimized entries, the change of the error, and its standard error."""
    loads = jnp.asarray(code.loads, jnp.result_type(float))
    assignment = jnp.asarray(code.assignment)
    before = jnp.asarray(code.encoding_matrix)
    jitter_key, train_key, test_key = jax.random.split(key, 3)
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, num_steps))

    def draw(key, states):
        """Draws the next round of each simulated cluster: responses and next states."""
        sample = jax.vmap(model.sample, in_axes=(0, 0, None))
        arrivals, states = sample(jax.random.split(key, batch_size), states, loads)
        return arrivals.received, states

    def errors(entries, masks):
        matrix = jnp.where(assignment, entries, 0)
        return decoding(dataclasses.replace(code, encoding_matrix=matrix), masks).error

    def step(carry, key):
        relative, optimizer_state, states = carry
        masks, states = draw(key, states)

        def mean_error(relative):
            return errors(relative * scale, masks).mean()

        gradient = jax.grad(mean_error)(relative)
        updates, optimizer_state = optimizer.update(gradient, optimizer_state)
        relative = optax.apply_updates(relative, updates)
        return (relative, optimizer_state, states), None

    def compare(states, key):
        masks, states = draw(key, states)
        # `lax.map` decodes the codes one after the other, so that the decoder is
        # compiled once.
        entries_of_codes = jnp.stack([relative * scale, before])
        new, old = jax.lax.map(lambda entries: errors(entries, masks), entries_of_codes)
        return states, new - old

    states = jax.vmap(lambda _: model.init(code.num_workers))(jnp.arange(batch_size))
    jitter = _JITTER * jax.random.normal(jitter_key, before.shape, before.dtype)
    relative = jnp.where(assignment, before / scale + jitter, 0)
    carry = relative, optimizer.init(relative), states
    train_keys = jax.random.split(train_key, num_steps)
    (relative, _, states), _ = jax.lax.scan(step, carry, train_keys)
    test_keys = jax.random.split(test_key, -(-_NUM_TEST_ROUNDS // batch_size))
    _, differences = jax.lax.scan(compare, states, test_keys)
    deviation = differences.std() / np.sqrt(differences.size)
    return relative * scale, differences.mean(), deviation
