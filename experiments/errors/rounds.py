"""Rounds with corrupted messages: which are located, and what is decoded."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxwgc
from jaxwgc import codes, corruptions, stragglers

# Parameters of the gradient.
NUM_PARAMETERS = 2_000


@dataclasses.dataclass(frozen=True)
class two_directions(corruptions.CorruptionModel):
    """Errors of all corrupted workers in the same plane."""

    def corrupted(self, key, messages):
        """Returns all messages as if all were corrupted."""
        mix_key, vectors_key = jax.random.split(key)
        num_messages, length = messages.shape
        mix = jax.random.normal(mix_key, (num_messages, 2), messages.dtype)
        vectors = jax.random.normal(vectors_key, (2, length), messages.dtype)
        return messages + size_of(messages) * mix @ vectors


@dataclasses.dataclass(frozen=True, eq=False)
class lightest_codeword(corruptions.CorruptionModel):
    """Errors that are consistent if as few other workers as possible are corrupted.

    `who` is `stragglers.fixed`, and workers have one message each.
    """

    code: jaxwgc.GradientCode

    def corrupted(self, key, messages):
        """Returns all messages as if all were corrupted."""
        order_key, vector_key = jax.random.split(key)
        left, singular, _ = np.linalg.svd(self.code.encoding_matrix)
        rank = int(np.sum(singular > 1e-9 * singular[0]))
        basis = jnp.asarray(left[:, :rank], messages.dtype)
        assert isinstance(self.who, stragglers.fixed)
        # The codeword is zero at as many of the uncorrupted workers as possible.
        draws = jax.random.uniform(order_key, (len(basis),)) + ~self.who.received
        place = jnp.argsort(jnp.argsort(draws))
        zeros = (place < rank - 1) & self.who.received
        _, _, right = jnp.linalg.svd(jnp.where(zeros[:, None], basis, 0))
        word = basis @ right[-1].conj()
        word /= jnp.max(jnp.abs(word))
        vector = jax.random.normal(vector_key, messages.shape[1:], messages.dtype)
        return messages + size_of(messages) * word[:, None] * vector


def size_of(messages: jax.Array) -> jax.Array:
    """Returns the root mean square of all entries, in the dtype of the messages."""
    mean_square = jnp.mean(jnp.abs(messages) ** 2)
    return jnp.sqrt(mean_square).astype(messages.dtype)


@dataclasses.dataclass(frozen=True, eq=False)
class one_of(corruptions.CorruptionModel):
    """One of several models by a traced index, so that one program serves all."""

    models: tuple[corruptions.CorruptionModel, ...]
    index: jax.Array

    def corrupted(self, key, messages):
        """Returns all messages as if all were corrupted."""
        branches = [model.corrupted for model in self.models]
        return jax.lax.switch(self.index, branches, key, messages)


# Makes a model of the corrupted workers and the code.
Corrupt = Callable[
    [stragglers.StragglerModel, jaxwgc.GradientCode], corruptions.CorruptionModel
]
INDEPENDENT: dict[str, Corrupt] = {
    "noise": lambda who, code: corruptions.additive_noise(who),
    "sign": lambda who, code: corruptions.sign_flip(who),
    "noise of 1%": lambda who, code: corruptions.additive_noise(who, 0.01),
    "one entry": lambda who, code: corruptions.additive_noise(who, 3.0, 1e-9),
}
TOGETHER: dict[str, Corrupt] = {
    "same vector": lambda who, code: corruptions.same_vector(who),
    "a plane": lambda who, code: two_directions(who),
    "part of a codeword": corruptions.codeword_part,
}
WORST: dict[str, Corrupt] = {"part of the lightest codeword": lightest_codeword}


def known_codes(key: jax.Array) -> dict[str, jaxwgc.GradientCode]:
    """Returns the codes by name."""
    efficient = codes.communication_efficient(12, 4, 2)
    return {
        "RS(20, 20, 9)": codes.reed_solomon(20, 20, 9),
        "RS(50, 20, 30)": codes.reed_solomon(50, 20, 30),
        "cyclic repetition, n = 12, s = 5": codes.cyclic_repetition(key, 12, 5),
        "cyclic MDS, n = 12, s = 5": codes.cyclic_mds(12, 5),
        "fractional repetition, n = 12, s = 2": codes.fractional_repetition(12, 2),
        "communication-efficient, n = 12, s = 4": efficient,
    }


class Outcomes(NamedTuple):
    """Outcomes of rounds; arrays (rounds,).

    Attributes:
      is_right: Whether exactly the corrupted workers are located.
      is_rejected: Whether the round is rejected.
      blames: Whether an honest worker is blamed.
      error: Relative error of the decoded gradient.
    """

    is_right: jax.Array | np.ndarray
    is_rejected: jax.Array | np.ndarray
    blames: jax.Array | np.ndarray
    error: jax.Array | np.ndarray


def one_of_kinds(
    kinds: dict[str, Corrupt],
    index: jax.Array,
    who: stragglers.StragglerModel,
    code: jaxwgc.GradientCode,
) -> one_of:
    """Returns the model of that index among kinds of errors."""
    models = tuple(make(who, code) for make in kinds.values())
    return one_of(who, models, index)


def corrupt_and_decode(
    code: jaxwgc.GradientCode,
    model: corruptions.CorruptionModel,
    keys: jax.Array,
    mask: jax.Array,
) -> tuple[jaxwgc.coding.ErrorLocation, jax.Array]:
    """Returns located errors, and the relative error of the decoded gradient."""
    gradients = jax.random.normal(keys[0], (code.num_parts, NUM_PARAMETERS))
    sent = jaxwgc.encode(code, gradients)
    messages, *_ = model.sample(keys[2], (), sent, code.num_workers)
    located = jaxwgc.coding.ErrorLocator.of(code).locate(messages, mask, keys[3])
    params = jax.ShapeDtypeStruct((NUM_PARAMETERS,), gradients.dtype)
    exact = gradients.sum(0)
    deviation = jaxwgc.decode(code, messages, located, params) - exact
    return located, jnp.linalg.norm(deviation) / jnp.linalg.norm(exact)


class Rounds:
    """Rounds of a code in one program for all kinds and numbers of errors.

    Rounds run one after the other, since each stops when it has converged.
    """

    kinds = INDEPENDENT | TOGETHER | WORST

    def __init__(self, code: jaxwgc.GradientCode, num_rounds: int, key: jax.Array):
        self.code = code
        self.keys = jax.random.split(key, num_rounds)
        num_workers = code.num_workers

        def one_round(key, kind, num_wrong, num_missing):
            keys = jax.random.split(key, 4)
            place = jax.random.permutation(keys[1], num_workers)
            is_wrong = place < num_wrong
            received = is_wrong | (place >= num_wrong + num_missing)
            model = one_of_kinds(self.kinds, kind, stragglers.fixed(~is_wrong), code)
            mask = jnp.repeat(received, code.messages_per_worker)
            located, error = corrupt_and_decode(code, model, keys, mask)
            is_located = jnp.all(located.wrong == is_wrong)
            return Outcomes(
                is_right=is_located & ~located.rejected,
                is_rejected=located.rejected,
                blames=jnp.any(located.wrong & ~is_wrong),
                error=error,
            )

        @jax.jit
        def play(keys, kind, num_wrong, num_missing):
            return jax.lax.map(
                lambda key: one_round(key, kind, num_wrong, num_missing), keys
            )

        self._play = play

    def play(
        self, kind: str, num_wrong: int, num_missing: int = 0, batch: int = 0
    ) -> Outcomes:
        """Returns the outcomes of rounds; `batch` chooses other random numbers."""
        keys = self.keys
        if batch:
            keys = jax.vmap(lambda key: jax.random.fold_in(key, batch))(keys)
        index = list(self.kinds).index(kind)
        outcomes = self._play(keys, index, num_wrong, num_missing)
        return jax.tree.map(np.asarray, outcomes)
