"""Time of a coded training step, against the plain one."""

import functools

import jax
import jax.numpy as jnp
import optax

import jaxwgc
from experiments import descent, results
from experiments.timing import median_seconds


def section(repeats: int, seed: int, quick: bool):
    """A coded step on an MLP 784-128-10, float32, the paper's cluster."""
    num_rows = 400 if quick else 10_000
    keys = jax.random.split(jax.random.key(seed), 5)
    params = {
        "hidden": jax.random.normal(keys[0], (784, 128)) / 28,
        "hidden_bias": jnp.zeros(128),
        "output": jax.random.normal(keys[1], (128, 10)) / 11,
        "output_bias": jnp.zeros(10),
    }
    images = jax.random.normal(keys[2], (num_rows, 784))
    labels = jax.random.randint(keys[3], (num_rows,), 0, 10)
    whole = (images, labels)
    parts, _ = jaxwgc.partition(whole, descent.CODE.num_parts)
    loads = jnp.asarray(descent.CODE.loads, jnp.float32)
    sgd = optax.sgd(1e-5)

    def loss(params, batch):
        images, labels = batch
        hidden = jax.nn.relu(images @ params["hidden"] + params["hidden_bias"])
        logits = hidden @ params["output"] + params["output_bias"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).sum()

    def plain(params, state):
        _, gradient = jax.value_and_grad(loss)(params, whole)
        updates, state = sgd.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    decoded = jaxwgc.decoded_value_and_grad(loss, descent.CODE)

    def collapsed(params, carry):
        key, state = carry
        key, round_key = jax.random.split(key)
        arrivals, _ = descent.STRAGGLERS.sample(round_key, (), loads)
        _, gradient = decoded(params, parts, arrivals.received)
        updates, state = sgd.update(gradient, state, params)
        return optax.apply_updates(params, updates), (key, state)

    def coded(method):
        aggregate = jaxwgc.coded_aggregate(
            descent.CODE, descent.STRAGGLERS, keys[4], method=method
        )
        optimizer = optax.chain(aggregate, sgd)

        def step(params, state):
            _, gradients = jaxwgc.partial_value_and_grad(loss)(params, parts)
            updates, state = optimizer.update(gradients, state, params)
            return optax.apply_updates(params, updates), state

        return step, optimizer.init(params)

    steps = {
        "plain": (plain, sgd.init(params)),
        "collapsed": (collapsed, (keys[4], sgd.init(params))),
        "partials": coded("partials"),
        "messages": coded("messages"),
    }
    compiled = {name: (jax.jit(step), state) for name, (step, state) in steps.items()}
    seconds = median_seconds(
        3 * repeats,
        *(functools.partial(step, params, state) for step, state in compiled.values()),
    )
    table = results.ResultTable(
        f"A step on an MLP 784-128-10, {num_rows:,} rows, float32",
        ["step", "milliseconds", "of the plain step"],
    )
    descriptions = {
        "plain": "plain full batch",
        "collapsed": "coded, one backward pass",
        "partials": "coded, effective weights on partial gradients",
        "messages": "coded, every message formed and decoded",
    }
    for name, time_of_step in zip(steps, seconds, strict=True):
        table.add_row(
            descriptions[name],
            f"{1e3 * time_of_step:.1f}",
            f"{time_of_step / seconds[0]:.2f}",
        )
    return table, dict(zip(steps, seconds, strict=True))
