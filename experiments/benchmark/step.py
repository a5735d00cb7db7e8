"""Time of a coded training step, against the plain one."""

import functools

import jax
import jax.numpy as jnp
import optax

import jaxwgc
from experiments.paper import descent
from experiments.runner.study import Once, Study
from experiments.runner.tables import ResultTable
from experiments.runner.timing import median_seconds

DESCRIPTIONS = (
    "plain full batch",
    "coded, one backward pass",
    "coded, effective weights on partial gradients",
    "coded, every message formed and decoded",
    "the same, wrong messages looked for",
)


def study(repeats: int, seed: int, quick: bool) -> Study:
    """A coded step on an MLP 784-128-10, float32, the paper's cluster."""
    num_rows = 400 if quick else 10_000

    def tabulate(numbers):
        return ResultTable(
            f"A step on an MLP 784-128-10, {num_rows:,} rows, float32",
            ["step", "milliseconds", "of the plain step"],
            [
                [text, f"{1e3 * seconds:.1f}", f"{seconds / numbers['plain']:.2f}"]
                for seconds, text in zip(numbers.values(), DESCRIPTIONS)
            ],
        )

    return Study(Once(measure, repeats, seed, num_rows), tables={"": tabulate})


def measure(repeats: int, seed: int, num_rows: int) -> dict[str, float]:
    """Seconds, all timed in turn."""
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

    def stepper(gradient, optimizer):
        def step(params, state):
            updates, state = optimizer.update(gradient(params), state, params)
            return optax.apply_updates(params, updates), state

        return step, optimizer.init(params)

    decoded = jaxwgc.decoded_value_and_grad(loss, descent.CODE)

    def collapsed(params, carry):
        key, state = carry
        key, round_key = jax.random.split(key)
        arrivals, _ = descent.STRAGGLERS.sample(round_key, (), loads)
        _, gradient = decoded(params, parts, arrivals.received)
        updates, state = sgd.update(gradient, state, params)
        return optax.apply_updates(params, updates), (key, state)

    def coded(method, **options):
        aggregate = jaxwgc.coded_aggregate(
            descent.CODE, descent.STRAGGLERS, keys[4], method=method, **options
        )
        partials = jaxwgc.partial_value_and_grad(loss)
        optimizer = optax.chain(aggregate, sgd)
        return stepper(lambda params: partials(params, parts)[1], optimizer)

    steps = {
        "plain": stepper(lambda params: jax.grad(loss)(params, whole), sgd),
        "collapsed": (collapsed, (keys[4], sgd.init(params))),
        "partials": coded("partials"),
        "messages": coded("messages"),
        "corrected": coded("messages", correct_errors=True),
    }
    compiled = {name: (jax.jit(step), state) for name, (step, state) in steps.items()}
    seconds = median_seconds(
        3 * repeats,
        *(functools.partial(step, params, state) for step, state in compiled.values()),
    )
    return dict(zip(steps, seconds, strict=True))
