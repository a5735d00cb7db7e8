"""Training with corrupted messages, and robust aggregation of the same messages."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxwgc
from experiments.errors.rounds import Corrupt, one_of_kinds
from experiments.paper.mnist import Digits, load_digits, test_error
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


Parts = tuple[jax.Array, jax.Array]


def _loss(params: jax.Array, part: Parts) -> jax.Array:
    images, labels = part
    logits = images @ params
    return jnp.sum(jax.nn.softplus(logits) - labels * logits)


def _parts(is_sorted: bool = False) -> tuple[Parts, Digits]:
    """Returns images and labels of 20 parts, and the images to test."""
    training, test = load_digits()
    images, labels = training
    if is_sorted:
        order = jnp.argsort(labels)
        images = images[order]
        labels = labels[order]
    parts, _ = jaxwgc.partition((images, labels), 20)
    return parts, test


def study(quick: bool, key: jax.Array) -> Study:
    """Returns logistic regression with two workers lost and two corrupted per round."""
    num_seeds = 2 if quick else NUM_SEEDS
    trainers = {way: trainer(way, num_seeds, key) for way in WAYS}
    cells = {}
    for index, kind in enumerate(KINDS):
        cells[kind] = {way: Once(train, trainers[way], index) for way in WAYS}
    columns = {"error": "{name}"}
    # Clean trainings end where corrected ones do.
    shown = [way for way in WAYS if way != "clean"]
    for way in shown:
        columns[f"{way}: test error"] = f"{{{way}[error]}}"
    for way in shown:
        columns[f"{way}: loss"] = f"{{{way}[loss]:.4g}}"
    columns["rounds corrected"] = "{corrected[corrected]:.0f}"
    columns["rounds rejected"] = "{corrected[rejected]:.0f}"
    return timed(
        cells,
        f"MNIST 4 vs 9, {NUM_STEPS} steps of gradient descent, RS(20, 20, 9), "
        f"{NUM_LOST} of {NUM_WORKERS} workers lost and {NUM_WRONG} corrupted in each "
        "round: test error in percent, loss on all data, and with correction the "
        "rounds in which a worker was blamed, or which were rejected",
        columns,
    )


class Trained(NamedTuple):
    """Ends of trainings: test error, loss, and rounds corrected and rejected."""

    error: jax.Array
    loss: jax.Array
    corrected: jax.Array | int
    rejected: jax.Array | int


def trainer(way: str, num_seeds: int, key: jax.Array) -> Callable[[int], Trained]:
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

        images, _ = parts
        start = jnp.zeros(images.shape[-1])
        carry = (start, chain.init(start))
        # The type checker does not know the type of the state of a chain.
        end: Any = jax.lax.scan(step, carry, length=NUM_STEPS)
        (params, state), losses = end
        aggregate_state, *_ = state
        errors = aggregate_state.errors
        return Trained(
            error=test_error(params, test),
            loss=losses[-1],
            corrected=errors.num_corrected if errors else 0,
            rejected=errors.num_rejected if errors else 0,
        )

    keys = jax.random.split(key, num_seeds)

    @jax.jit
    def train_all(kind):
        return jax.lax.map(lambda key: one_run(key, kind), keys)

    return train_all


def train(train_all: Callable[[int], Trained], kind: int) -> Numbers:
    """Returns the final test error and loss, and rounds corrected and rejected."""
    trained = train_all(kind)
    # A guess between two digits, if training diverges.
    errors = jnp.where(jnp.isfinite(trained.loss), trained.error, 50.0)
    return {
        "error": jaxwgc.summarize(errors),
        "loss": float(jnp.mean(trained.loss)),
        "corrected": float(jnp.mean(trained.corrected)),
        "rejected": float(jnp.mean(trained.rejected)),
    }


def trimmed_mean(messages: jax.Array) -> jax.Array:
    """Returns the mean of each coordinate without its extremes."""
    ordered = jnp.sort(messages, axis=0)
    return ordered[NUM_WRONG:-NUM_WRONG].mean(0)


def krum(messages: jax.Array) -> jax.Array:
    """Returns the message with the least distance to its n - f - 2 nearest ones."""
    differences = messages[:, None] - messages
    squares = jnp.sort(jnp.sum(differences**2, axis=2), axis=1)
    # The nearest message is the message itself.
    num_nearest = len(messages) - NUM_WRONG - 2
    scores = squares[:, 1 : 1 + num_nearest].sum(axis=1)
    return messages[jnp.argmin(scores)]


OTHERS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "mean": lambda messages: messages.mean(0),
    "coordinate median": lambda messages: jnp.median(messages, axis=0),
    "trimmed mean": trimmed_mean,
    "Krum": krum,
}


def compared(runs: int, key: jax.Array) -> Study:
    """Returns errors of the gradient, from uncoded and from coded messages."""
    cells = []
    for data, is_sorted in (("shuffled", False), ("sorted by digit", True)):
        for kind in KINDS:
            cell = Once(compare, kind, is_sorted, runs, key)
            cells.append({"data": data, "kind": kind, "": cell})
    columns = {"data": "{data}", "error": "{kind}"}
    for name in (*OTHERS, "coded, corrected"):
        columns[name] = f"{{{name}:.1e}}"
    return timed(
        cells,
        f"Relative error of the gradient, median, {NUM_WRONG} of {NUM_WORKERS} workers "
        "corrupted: aggregations of one message per part, and of coded messages, which "
        "need nine times the work",
        columns,
    )


def compare(kind: str, is_sorted: bool, runs: int, key: jax.Array) -> Numbers:
    """Returns medians over rounds of the relative error of the gradient."""
    parts, _ = _parts(is_sorted)
    images, _ = parts
    params = 0.01 * jax.random.normal(key, images.shape[-1:])
    _, gradients = jaxwgc.partial_value_and_grad(_loss)(params, parts)
    exact = gradients.sum(0)
    uncoded = codes.uncoded(NUM_WORKERS)
    locator = jaxwgc.coding.ErrorLocator.of(CODE)
    model = functools.partial(KINDS[kind], stragglers.uniform(NUM_WRONG))

    def relative_error(gradient):
        return jnp.linalg.norm(gradient - exact) / jnp.linalg.norm(exact)

    def one_round(key) -> dict[str, jax.Array]:
        messages, *_ = model(uncoded).sample(key, (), gradients, NUM_WORKERS)
        errors = {}
        for name, mean in OTHERS.items():
            errors[name] = relative_error(NUM_WORKERS * mean(messages))
        sent = jaxwgc.encode(CODE, gradients)
        sent, *_ = model(CODE).sample(key, (), sent, NUM_WORKERS)
        received = jnp.ones(NUM_WORKERS, bool)
        located = locator.locate(sent, received, jax.random.fold_in(key, 1))
        decoded = jaxwgc.decode(CODE, sent, located, params)
        errors["coded, corrected"] = relative_error(decoded)
        return errors

    keys = jax.random.split(key, runs)
    errors = jax.jit(lambda keys: jax.lax.map(one_round, keys))(keys)
    return {name: float(np.nanmedian(values)) for name, values in errors.items()}
