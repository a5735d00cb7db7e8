"""Corruption models: simulated corruption of messages.

A corruption model is a pair of pure functions: `state = model.init(num_workers)` and
`messages, wrong, state = model.sample(key, state, messages, num_workers)`.
A straggler model selects the corrupted workers: the workers that it would delay or lose
send corrupted messages. `stragglers.uniform(2)` selects two workers anew in each round,
`stragglers.fixed(mask)` always the given ones, and `stragglers.markov` intermittent
ones.
"""

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxwgc._common import array_validation, validation
from jaxwgc._common.arrays import inverse_power_of_two, squares
from jaxwgc.codes import GradientCode
from jaxwgc.coding import quantize
from jaxwgc.stragglers import StragglerModel

__all__ = [
    "CorruptionModel",
    "additive_noise",
    "bit_flip",
    "codeword_part",
    "quantization",
    "same_vector",
    "scaling",
    "sign_flip",
]


@dataclasses.dataclass(frozen=True)
class CorruptionModel(abc.ABC):
    """Base class of corruption models.

    To write a model, derive a frozen dataclass that implements `corrupted`.

    Attributes:
      who: Straggler model that selects the corrupted workers.
      rules: What each number in a field must be, by the name of the field, e.g.
        `{"scale": {"minimum": 0}}`.

    Example:
      A worker that sends zeros:

      >>> import dataclasses
      >>> import jax, jax.numpy as jnp, jaxwgc
      >>> @dataclasses.dataclass(frozen=True)
      ... class zeros(jaxwgc.corruptions.CorruptionModel):
      ...     def corrupted(self, key, messages):
      ...         return jnp.zeros_like(messages)
      >>> model = zeros(who=jaxwgc.stragglers.uniform(1))
      >>> messages, wrong, _ = model.sample(
      ...     jax.random.key(0), model.init(4), jnp.ones((4, 2)), num_workers=4
      ... )
      >>> int(wrong.sum()), int((messages == 0).all(axis=1).sum())
      (1, 1)
    """

    who: StragglerModel
    rules: ClassVar[Mapping[str, Mapping[str, float]]] = {}

    def __post_init__(self):
        validation.check_instance("who", self.who, StragglerModel)
        array_validation.check_fields(self, **self.rules)

    def init(self, num_workers: int) -> Any:
        """Returns the state before the first round."""
        return self.who.init(num_workers)

    def sample(
        self, key: jax.Array, state: Any, messages: jax.Array, num_workers: int
    ) -> tuple[jax.Array, jax.Array, Any]:
        """Draws the corrupted workers of a round, and corrupts their messages.

        Args:
          key: PRNG key of either kind.
          state: State from `init` or the previous round.
          messages: (num_messages, length); messages of a worker are adjacent.
          num_workers: Number of workers, a divisor of num_messages.

        Returns:
          The messages as received, the corrupted workers as bool (num_workers,), and
          the next state.
        """
        who_key, what_key = jax.random.split(key)
        arrivals, state = self.who.sample(who_key, state, jnp.ones(num_workers))
        wrong = ~arrivals.received
        rows = jnp.repeat(wrong, len(messages) // num_workers)[:, None]
        other = jnp.asarray(self.corrupted(what_key, messages), messages.dtype)
        return jnp.where(rows, other, messages), wrong, state

    @abc.abstractmethod
    def corrupted(self, key: jax.Array, messages: jax.Array) -> jax.Array:
        """Returns corrupted versions of all messages, also of unselected workers.

        Args:
          key: PRNG key.
          messages: Correct messages, (num_messages, length).
        """


@dataclasses.dataclass(frozen=True)
class additive_noise(CorruptionModel):
    """Corruption by Gaussian noise, relative to each message's root mean square.

    Args:
      who: Straggler model that selects the corrupted workers.
      scale: Standard deviation relative to the root mean square; at least 0.
      share: Fraction of the entries with noise, above 0 and at most 1; at least one
        entry.

    Example:
      >>> import jax, jax.numpy as jnp, jaxwgc
      >>> who = jaxwgc.stragglers.fixed(jnp.array([True, False, True]))
      >>> model = jaxwgc.corruptions.additive_noise(who, scale=0.1)
      >>> messages, wrong, state = model.sample(
      ...     jax.random.key(0), model.init(3), jnp.ones((3, 4)), num_workers=3
      ... )
      >>> wrong
      Array([False,  True, False], dtype=bool)
      >>> (messages == 1).all(1)
      Array([ True, False,  True], dtype=bool)
    """

    scale: ArrayLike = 1.0
    share: float = 1.0
    rules = {"scale": {"minimum": 0}, "share": {"positive": True, "maximum": 1}}

    def corrupted(self, key, messages):
        """Returns all messages with added noise."""
        noise_key, place_key = jax.random.split(key)
        noise = jax.random.normal(noise_key, messages.shape, messages.dtype)
        if self.share < 1:
            number = max(1, round(self.share * messages.shape[1]))
            draws = jax.random.uniform(place_key, messages.shape)
            limit = jnp.sort(draws, axis=1)[:, number - 1 : number]
            noise = jnp.where(draws <= limit, noise, 0)
        size = _root_mean_square(messages, axis=1).astype(messages.dtype)
        return messages + self.scale * size * noise


@dataclasses.dataclass(frozen=True)
class sign_flip(CorruptionModel):
    """Corruption that flips the sign of each message.

    Args:
      who: Straggler model that selects the corrupted workers.

    Example:
      >>> import jax.numpy as jnp, jaxwgc
      >>> model = jaxwgc.corruptions.sign_flip(jaxwgc.stragglers.uniform(1))
      >>> model.corrupted(None, jnp.ones((1, 2)))
      Array([[-1., -1.]], dtype=float32)
    """

    def corrupted(self, key, messages):
        """Returns the negatives of all messages."""
        return -messages


@dataclasses.dataclass(frozen=True)
class scaling(CorruptionModel):
    """Corruption that multiplies each message by a constant factor.

    Args:
      who: Straggler model that selects the corrupted workers.
      factor: Factor of the messages.

    Example:
      >>> import jax.numpy as jnp, jaxwgc
      >>> model = jaxwgc.corruptions.scaling(jaxwgc.stragglers.uniform(1), factor=3)
      >>> model.corrupted(None, jnp.ones((1, 2)))
      Array([[3., 3.]], dtype=float32)
    """

    factor: ArrayLike = 2.0
    rules = {"factor": {}}

    def corrupted(self, key, messages):
        """Returns all messages, multiplied by the factor."""
        return messages * self.factor


@dataclasses.dataclass(frozen=True)
class bit_flip(CorruptionModel):
    """Corruption that flips one bit in one entry of each message, like faulty memory.

    Args:
      who: Straggler model that selects the corrupted workers.
      bit: Position of the bit in the floating-point number, from 0 (last bit of the
        mantissa) to the sign (31 in float32). None draws it at random. May be traced.

    Raises:
      ValueError: If the dtype has no such bit.

    Example:
      The sign is the last bit:

      >>> import jax, jax.numpy as jnp, jaxwgc
      >>> model = jaxwgc.corruptions.bit_flip(jaxwgc.stragglers.uniform(1), bit=31)
      >>> model.corrupted(jax.random.key(0), jnp.ones((1, 1)))
      Array([[-1.]], dtype=float32)
    """

    bit: int | jax.Array | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.bit is not None:
            array_validation.check_dtypes("bit", self.bit, "integers")

    def corrupted(self, key, messages):
        """Returns all messages with a flipped bit in one entry each."""
        place_key, bit_key = jax.random.split(key)
        # Complex entries become pairs of floats, whose bits can be flipped.
        entries = messages.view(messages.real.dtype)
        num_bits = jnp.finfo(entries.dtype).bits
        shape = entries.shape[:1]
        if self.bit is None:
            bit = jax.random.randint(bit_key, shape, 0, num_bits)
        else:
            if (
                not array_validation.is_traced(self.bit)
                and not 0 <= self.bit < num_bits
            ):
                raise ValueError(
                    f"bit must be from 0 to {num_bits - 1} for messages of "
                    f"{entries.dtype}; got {self.bit}"
                )
            bit = jnp.broadcast_to(self.bit, shape)
        place = jax.random.randint(place_key, shape, 0, entries.shape[1])
        unsigned = jnp.dtype(f"uint{num_bits}")
        is_flipped = jnp.arange(entries.shape[1]) == place[:, None]
        flips = is_flipped.astype(unsigned) << bit[:, None].astype(unsigned)
        flipped = entries.view(unsigned) ^ flips
        return flipped.view(entries.dtype).view(messages.dtype)


@dataclasses.dataclass(frozen=True)
class same_vector(CorruptionModel):
    """Corruption that adds one random vector to all messages: a fault, or collusion.

    Args:
      who: Straggler model that selects the corrupted workers.
      scale: Root mean square of the vector, relative to all messages; at least 0.

    Example:
      >>> import jax, jax.numpy as jnp, jaxwgc
      >>> model = jaxwgc.corruptions.same_vector(jaxwgc.stragglers.uniform(2))
      >>> messages = jnp.array([[1.0, 1.0], [2.0, 3.0]])
      >>> errors = model.corrupted(jax.random.key(0), messages) - messages
      >>> bool(jnp.allclose(errors[0], errors[1]))
      True
    """

    scale: ArrayLike = 1.0
    rules = {"scale": {"minimum": 0}}

    def corrupted(self, key, messages):
        """Returns all messages with the same added vector."""
        vector = jax.random.normal(key, messages.shape[1:], messages.dtype)
        return messages + self.scale * _size_of(messages) * vector


@dataclasses.dataclass(frozen=True, eq=False)
class codeword_part(CorruptionModel):
    """Corruption by colluding workers that add parts of one codeword: the worst attack.

    The corrupted messages are valid messages for other gradients. If all workers add
    their part, no parity check fails. Corrupted workers can be told from the others
    only by their number.

    Args:
      who: Straggler model that selects the corrupted workers.
      code: Code of the messages.

    Example:
      >>> import jax, jax.numpy as jnp, jaxwgc
      >>> code = jaxwgc.codes.fractional_repetition(4, num_stragglers=1)
      >>> who = jaxwgc.stragglers.uniform(2)
      >>> model = jaxwgc.corruptions.codeword_part(who, code)
      >>> other = jax.jit(model.corrupted)(jax.random.key(0), jnp.ones((4, 3)))
      >>> bool((other[0] == other[2]).all())
      True
    """

    code: GradientCode

    def __post_init__(self):
        super().__post_init__()
        GradientCode.check(self.code)

    def corrupted(self, key, messages):
        """Returns all messages with the added codeword, one part per worker."""
        word_key, vector_key = jax.random.split(key)
        matrix = jnp.asarray(self.code.encoding_matrix, messages.dtype)
        coefficients = jax.random.normal(word_key, matrix.shape[1:])
        word = matrix @ coefficients.astype(messages.dtype)
        word /= _size_of(word)
        vector = jax.random.normal(vector_key, messages.shape[1:], messages.dtype)
        return messages + word[:, None] * (_size_of(messages) * vector)


@dataclasses.dataclass(frozen=True, eq=False)
class quantization(CorruptionModel):
    """Corruption by unbiased stochastic rounding to few bits, with `coding.quantize`.

    `stragglers.bernoulli(1.0)` as `who` selects all workers. With
    `correct_errors=True`, these messages count as corrupted unless `noise` covers the
    rounding.

    Args:
      who: Straggler model that selects the corrupted workers.
      bits: Number of bits from 2 to 24, an int or ints (num_messages,).

    Example:
      >>> import jax, jax.numpy as jnp, jaxwgc
      >>> everybody = jaxwgc.stragglers.bernoulli(1.0)
      >>> model = jaxwgc.corruptions.quantization(everybody, bits=3)
      >>> model.corrupted(jax.random.key(0), jnp.array([[3.0, 4.0]]))
      Array([[1.6666667, 3.3333335]], dtype=float32)
    """

    bits: ArrayLike = 8

    def __post_init__(self):
        super().__post_init__()
        array_validation.check_dtypes("bits", self.bits, "integers")

    def corrupted(self, key, messages):
        """Returns all messages, rounded to the given number of bits."""
        return quantize(key, messages, self.bits)


def _size_of(messages: jax.Array) -> jax.Array:
    """Computes the root mean square of all entries of the messages."""
    return _root_mean_square(messages).astype(messages.dtype).reshape(())


def _root_mean_square(numbers: jax.Array, axis: int | None = None) -> jax.Array:
    """Computes root mean squares of absolute values along axes.

    Numbers are scaled by a power of two, so that squares stay in range.
    """
    largest = jnp.max(jnp.abs(numbers), axis=axis, keepdims=True, initial=0)
    unit = inverse_power_of_two(jax.lax.stop_gradient(largest))
    means = jnp.mean(squares(numbers * unit), axis=axis, keepdims=True)
    return jnp.sqrt(means) / unit
