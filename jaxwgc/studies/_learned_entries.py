"""Learned codes: the entries of B on a fixed assignment, by gradient descent."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxwgc import _validation
from jaxwgc.codes import GradientCode
from jaxwgc.coding import decoding_error
from jaxwgc.decoders import LeastSquares
from jaxwgc.stragglers import StragglerModel

# Rounds that say which of two codes is better, and how many standard errors of the
# mean difference the new one must be ahead.
_NUM_TEST_ROUNDS = 16_384
_STANDARD_ERRORS = 3.0
# Of the entries, relative to their root mean square, to leave saddle points.
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
    """Improves the entries of B for given stragglers; who holds what stays.

    Minimises the mean decoding error of least squares over rounds drawn from a
    straggler model, by Adam with a step that falls to zero. The decoding weights
    minimise the error themselves, so that its gradient takes them as constants.

    The new code is kept only where it beats the old one, both decoded by least squares,
    on 16,384 fresh rounds by more than three standard errors of the difference;
    elsewhere the code comes back as it was. Exact codes give up their guarantee for a
    lower mean: the new code has num_stragglers = 0.

    Args:
      code: a real gradient code of one message a worker and no segments. Not traced.
      model: a straggler model, such as `jaxwgc.stragglers.bernoulli(0.3)`.
      key: PRNG key of either kind, of the rounds.
      num_steps: of Adam, at least 1.
      batch_size: rounds for each step, at least 1.
      learning_rate: of the first step, relative to the root mean square of the
        entries; positive.

    Returns:
      A code decoded by least squares, or `code` itself.

    Raises:
      ValueError: where the code is complex or has several messages or segments, or an
        argument breaks its rule.
      TypeError: where an argument has the wrong type, or the code is traced.

    Example:
      >>> import jax
      >>> from jaxwgc import codes, stragglers, studies
      >>> code = codes.regular_graph(jax.random.key(0), 8, replication=3)
      >>> learned = studies.learn_entries(
      ...     code, stragglers.uniform(2), jax.random.key(1), num_steps=100
      ... )
      >>> bool((learned.assignment == code.assignment).all())
      True

    References:
      Optimal decoding as the objective: Charles, Papailiopoulos, Ellenberg,
      "Approximate gradient coding via sparse random graphs", 2017. Learning the entries
      is the library's.
    """
    GradientCode.check(code, concrete="the better of two codes is returned")
    code.check_plain("learn_entries")
    _validation.require(not code.is_complex, "code", "be real", code)
    loads = np.asarray(code.loads, np.float64)
    StragglerModel.check("model", model, loads)
    key = _validation.check_key(key)
    num_steps = _validation.check_int("num_steps", num_steps, minimum=1)
    batch_size = _validation.check_int("batch_size", batch_size, minimum=1)
    rule = {"positive": True, "traceable": False}
    _validation.check_number("learning_rate", learning_rate, **rule)

    matrix = np.asarray(code.encoding_matrix, np.float64)
    assignment = np.asarray(code.assignment)
    scale = np.sqrt(np.mean(matrix[assignment] ** 2)) if assignment.any() else 0.0
    if scale == 0:
        return code
    learned = dataclasses.replace(
        code,
        encoding_matrix=matrix,
        num_stragglers=0,
        decoders=code.decoders_of(LeastSquares) or (LeastSquares(),),
    )
    learn = _learner(model, num_steps, batch_size)
    entries, difference, standard_error = learn(learned, key, scale, learning_rate)
    if not difference < -_STANDARD_ERRORS * standard_error:
        return code
    entries = np.asarray(entries, np.float64)
    return dataclasses.replace(
        learned, encoding_matrix=np.where(assignment, entries, 0)
    )


@functools.lru_cache(maxsize=1)
def _learner(model, num_steps, batch_size):
    """The compiled `_learn`; as a static argument every model would keep its own."""
    return jax.jit(functools.partial(_learn, model, num_steps, batch_size))


def _learn(model, num_steps, batch_size, code, key, scale, learning_rate):
    """New entries, and by how much they lower the mean error, with standard error."""
    loads = jnp.asarray(code.loads, jnp.result_type(float))
    assignment = jnp.asarray(code.assignment)
    before = jnp.asarray(code.encoding_matrix)
    jitter_key, train_key, test_key = jax.random.split(key, 3)
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, num_steps))

    def draw(key, states):
        """Next rounds of `batch_size` clusters side by side."""
        keys = jax.random.split(key, batch_size)
        arrivals, states = jax.vmap(model.sample, in_axes=(0, 0, None))(
            keys, states, loads
        )
        return arrivals.received, states

    def errors(entries, masks):
        matrix = jnp.where(assignment, entries, 0)
        entries_now = dataclasses.replace(code, encoding_matrix=matrix)
        return decoding_error(entries_now, masks)

    def step(carry, key):
        relative, optimizer_state, states = carry
        masks, states = draw(key, states)
        gradient = jax.grad(
            lambda entries_now: errors(entries_now * scale, masks).mean()
        )(relative)
        updates, optimizer_state = optimizer.update(gradient, optimizer_state)
        relative = optax.apply_updates(relative, updates)
        return (relative, optimizer_state, states), None

    def compare(states, key):
        masks, states = draw(key, states)
        # One after the other: one program for both.
        both = jax.lax.map(
            lambda entries_now: errors(entries_now, masks), jnp.stack([entries, before])
        )
        return states, both[0] - both[1]

    states = jax.tree.map(
        lambda leaf: jnp.broadcast_to(leaf, (batch_size, *jnp.shape(leaf))),
        model.init(code.num_workers),
    )
    jitter = _JITTER * jax.random.normal(jitter_key, before.shape, before.dtype)
    relative = jnp.where(assignment, before / scale + jitter, 0)
    carry = relative, optimizer.init(relative), states
    (relative, _, states), _ = jax.lax.scan(
        step, carry, jax.random.split(train_key, num_steps)
    )
    entries = relative * scale
    num_tests = -(-_NUM_TEST_ROUNDS // batch_size)
    _, differences = jax.lax.scan(
        compare, states, jax.random.split(test_key, num_tests)
    )
    deviation = differences.std() / np.sqrt(differences.size)
    return entries, differences.mean(), deviation
