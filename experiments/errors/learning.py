"""Training with corrupted messages, and robust aggregation of the same messages."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxwgc
from experiments.errors.rounds import Corrupt, one_of_kinds
from experiments.paper.mnist import load_digits, test_error
from experiments.runner.study import Numbers, Once, Study, timed
from jaxwgc import codes, corruptions, stragglers

NUM_WORKERS = 20
NUM_LOST = 2
NUM_WRONG = 2
CODE = codes.reed_solomon(NUM_WORKERS, NUM_WORKERS, 9)
NUM_STEPS = 200
NUM_SEEDS = 5
LEARNING_RATE = 1e-4
KINDS: dict[str, Corrupt] = {
    "sign": lambda who, code: corruptions.sign_flip(who),
    "a thousand times": lambda who, code: corruptions.scaling(who, 1000.0),
    "noise": lambda who, code: corruptions.additive_noise(who, 100.0),
    "one bit": lambda who, code: corruptions.bit_flip(who),
    "same vector": lambda who, code: corruptions.same_vector(who, 100.0),
}
WAYS = ("clean", "not corrected", "corrected")


def _loss(params, part):
    images, labels = part
    logits = images @ params
    return jnp.sum(jax.nn.softplus(logits) - labels * logits)


def _parts(is_sorted: int = False):
    training, test = load_digits()
    order = jnp.argsort(training.labels) if is_sorted else slice(None)
    parts, _ = jaxwgc.partition((training.images[order], training.labels[order]), 20)
    return parts, test


def study(quick: bool, key: jax.Array) -> Study:
    """Returns logistic regression with two workers lost and two corrupted per round."""
    trained = {way: trainer(way, 2 if quick else NUM_SEEDS, key) for way in WAYS}
    return timed(
        {
            kind: {way: Once(train, trained[way], index) for way in WAYS}
            for index, kind in enumerate(KINDS)
        },
        f"MNIST 4 vs 9, {NUM_STEPS} steps of gradient descent, RS(20, 20, 9), "
        f"{NUM_LOST} of {NUM_WORKERS} workers lost and {NUM_WRONG} corrupted in each "
        "round: test error in percent, loss on all data, and with correction the "
        "rounds in which a worker was blamed, or which were rejected",
        {"error": "{name}"}
        | {f"{way}: test error": f"{{{way}[error]}}" for way in WAYS}
        | {f"{way}: loss": f"{{{way}[loss]:.4g}}" for way in WAYS}
        | {
            "rounds corrected": "{corrected[corrected]:.0f}",
            "rounds rejected": "{corrected[refused]:.0f}",
        },
    )


def trainer(way: str, num_seeds: int, key: jax.Array) -> Callable[[int], Any]:
    """Returns a function that trains with the kind of errors of an index."""
    parts, test = _parts()
    partials = jaxwgc.partial_value_and_grad(_loss)
    who = stragglers.uniform(NUM_WRONG)

    def one_run(key, kind):
        model = one_of_kinds(KINDS, kind, who, CODE)
        aggregate = jaxwgc.coded_aggregate(
            CODE,
            stragglers.uniform(NUM_LOST),
            key,
            method="messages",
            corrupt=None if way == "clean" else model,
            correct_errors=way == "corrected",
        )
        chain = optax.chain(aggregate, optax.sgd(LEARNING_RATE))

        def step(carry, _):
            params, state = carry
            losses, gradients = partials(params, parts)
            updates, state = chain.update(gradients, state, params)
            return (optax.apply_updates(params, updates), state), losses.sum()

        start = jnp.zeros(parts[0].shape[-1])
        carry: Any = start, chain.init(start)
        end: Any = jax.lax.scan(step, carry, length=NUM_STEPS)
        (params, state), losses = end
        errors = state[0].errors
        counts = (errors.num_corrected, errors.num_refused) if errors else (0, 0)
        return test_error(jnp.asarray(params), test), losses[-1], *counts

    keys = jax.random.split(key, num_seeds)
    return jax.jit(lambda kind: jax.lax.map(lambda key: one_run(key, kind), keys))


def train(trained: Callable[[int], Any], kind: int) -> Numbers:
    """Returns the final test error and loss, and rounds corrected and rejected."""
    error, loss, corrected, refused = trained(kind)
    return {
        # A guess between two digits, if training diverges.
        "error": jaxwgc.summarize(jnp.where(jnp.isfinite(loss), error, 50.0)),
        "loss": float(jnp.mean(loss)),
        "corrected": float(jnp.mean(corrected)),
        "refused": float(jnp.mean(refused)),
    }


def trimmed_mean(messages: jax.Array) -> jax.Array:
    """Returns the mean of each coordinate without its extremes."""
    ordered = jnp.sort(messages, axis=0)
    return ordered[NUM_WRONG:-NUM_WRONG].mean(0)


def krum(messages: jax.Array) -> jax.Array:
    """Returns the message with the least distance to its n - f - 2 nearest ones."""
    differences = messages[:, None] - messages
    squares = jnp.sort(jnp.sum(differences**2, axis=2), axis=1)
    scores = squares[:, 1 : len(messages) - NUM_WRONG - 1].sum(1)
    return messages[jnp.argmin(scores)]


OTHERS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "mean": lambda messages: messages.mean(0),
    "coordinate median": lambda messages: jnp.median(messages, axis=0),
    "trimmed mean": trimmed_mean,
    "Krum": krum,
}


def compared(runs: int, key: jax.Array) -> Study:
    """Returns errors of the gradient, from uncoded and from coded messages."""
    names = [*OTHERS, "coded, corrected"]
    return timed(
        [
            {"data": data, "kind": kind, "": Once(compare, kind, is_sorted, runs, key)}
            for is_sorted, data in enumerate(("shuffled", "sorted by digit"))
            for kind in KINDS
        ],
        f"Relative error of the gradient, median, {NUM_WRONG} of {NUM_WORKERS} workers "
        "corrupted: aggregations of one message per part, and of coded messages, which "
        "need nine times the work",
        {"data": "{data}", "error": "{kind}"}
        | {name: f"{{{name}:.1e}}" for name in names},
    )


def compare(kind: str, is_sorted: int, runs: int, key: jax.Array) -> Numbers:
    """Returns medians over rounds of the relative error of the gradient."""
    parts, _ = _parts(is_sorted)
    params = 0.01 * jax.random.normal(key, parts[0].shape[-1:])
    gradients = jaxwgc.partial_value_and_grad(_loss)(params, parts)[1]
    exact = gradients.sum(0)
    uncoded = codes.uncoded(NUM_WORKERS)
    locator = jaxwgc.coding.ErrorLocator.of(CODE)
    model = functools.partial(KINDS[kind], stragglers.uniform(NUM_WRONG))

    def off(decoded):
        return jnp.linalg.norm(decoded - exact) / jnp.linalg.norm(exact)

    def one_round(key) -> dict[str, Any]:
        messages, *_ = model(uncoded).sample(key, (), gradients, NUM_WORKERS)
        misses = {n: off(NUM_WORKERS * mean(messages)) for n, mean in OTHERS.items()}
        sent = jaxwgc.encode(CODE, gradients)
        sent, *_ = model(CODE).sample(key, (), sent, NUM_WORKERS)
        received = jnp.ones(NUM_WORKERS, bool)
        located = locator.locate(sent, received, jax.random.fold_in(key, 1))
        misses["coded, corrected"] = off(jaxwgc.decode(CODE, sent, located, params))
        return misses

    keys = jax.random.split(key, runs)
    errors = jax.jit(lambda keys: jax.lax.map(one_round, keys))(keys)
    return {name: float(np.nanmedian(values)) for name, values in errors.items()}
