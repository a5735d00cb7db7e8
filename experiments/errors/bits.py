"""Single bits that flip, and errors of all sizes: detected, or harmless."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxwgc
from experiments.errors.rounds import NUM_PARAMETERS, known_codes
from experiments.runner.figures import Figure, line, new_figure
from experiments.runner.study import Numbers, Once, Study
from experiments.runner.tables import ResultTable
from jaxwgc import corruptions, stragglers

SHOWN = (
    "RS(20, 20, 9)",
    "cyclic repetition, n = 12, s = 5",
    "fractional repetition, n = 12, s = 2",
)
NUM_BITS = 32
# Relative change of the gradient below which an error does not matter.
HARMLESS = 1e-5
SIZES = 10.0 ** np.arange(-8, 3.1, 0.5)


def study(runs: int, key: jax.Array) -> Study:
    """By bit, and by size."""
    every = known_codes(key)
    numbers = {
        "rounds": 5 * runs,
        "sizes": SIZES.tolist(),
        "codes": {
            name: {
                "bits": Once(flipped, every[name], 5 * runs, key),
                "whole": Once(sized, every[name], 1.0, runs, key),
                "entry": Once(sized, every[name], 1e-9, runs, key),
            }
            for name in SHOWN
        },
    }
    return Study(numbers, tables={"bits": tabulate}, figures={"sizes": draw}, note=note)


def _play(code, model_of, settings, runs, key):
    """For each setting: who was named, and how far off the gradient is."""
    num_workers = code.num_workers
    locator = jaxwgc.coding.ErrorLocator.of(code)
    received = jnp.ones(num_workers, bool)
    params = jax.ShapeDtypeStruct((NUM_PARAMETERS,), jnp.float32)

    def one_round(key, setting):
        keys = jax.random.split(key, 4)
        gradients = jax.random.normal(keys[0], (code.num_parts, NUM_PARAMETERS))
        worker = jax.random.randint(keys[1], (), 0, num_workers)
        is_wrong = jnp.arange(num_workers) == worker
        model = model_of(stragglers.fixed(~is_wrong), setting)
        right = jaxwgc.encode(code, gradients)
        messages, *_ = model.sample(keys[2], (), right, num_workers)
        located = locator.locate(messages, received, keys[3])
        exact = gradients.sum(0)

        def off(received):
            decoded = jaxwgc.decode(code, messages, received, params)
            return jnp.linalg.norm(decoded - exact) / jnp.linalg.norm(exact)

        is_detected = located.wrong.any() | located.refused | ~located.mask.all()
        return is_detected, off(received), jnp.where(located.refused, 0, off(located))

    keys = jax.random.split(key, runs)

    @jax.jit
    def every(setting):
        return jax.lax.map(lambda key: one_round(key, setting), keys)

    return [jax.tree.map(np.asarray, every(setting)) for setting in settings]


def flipped(code: jaxwgc.GradientCode, runs: int, key: jax.Array) -> list[Numbers]:
    """By bit: rounds where it is detected, and the worst error where it is not."""
    played = _play(code, corruptions.bit_flip, jnp.arange(NUM_BITS), runs, key)
    return [
        {
            "detected": int(detected.sum()),
            "harm": float(believed.max()),
            "harmful": int(np.sum(believed > HARMLESS)),
            "without": float(np.median(np.nan_to_num(plain, nan=np.inf))),
        }
        for detected, plain, believed in played
    ]


def sized(
    code: jaxwgc.GradientCode, share: float, runs: int, key: jax.Array
) -> list[Numbers]:
    """By relative size of an error in a share of the entries of one message."""

    def model_of(who, size):
        return corruptions.additive_noise(who, size, share)

    # Of an entry, such a multiple of the norm of its message.
    scale = np.sqrt(NUM_PARAMETERS) if share < 1 else 1.0
    played = _play(code, model_of, jnp.asarray(SIZES * scale, jnp.float32), runs, key)
    return [
        {"detected": float(detected.mean()), "harm": float(believed.max())}
        for detected, _, believed in played
    ]


def tabulate(numbers: Numbers) -> ResultTable:
    """A row a bit."""
    codes = numbers["codes"]

    def cell(outcome):
        return f"{outcome.detected} ({outcome.harm:.0e})"

    rows = [
        [_name(bit), *(cell(codes[name].bits[bit]) for name in codes)]
        for bit in reversed(range(NUM_BITS))
    ]
    return ResultTable(
        f"One bit of one entry of one message is flipped, {numbers['rounds']:,} rounds "
        f"a bit, {NUM_PARAMETERS:,} parameters: detected, and in brackets the largest "
        "error of the gradient that is decoded, over its norm",
        ["bit", *codes],
        rows,
    )


def _name(bit):
    if bit == 31:
        return "31, sign"
    return f"{bit}, {'exponent' if bit >= 23 else 'mantissa'}"


def note(numbers: Numbers) -> str:
    """Says how many flips were neither detected nor harmless."""
    harmful = sum(
        bit.harmful for code in numbers["codes"].values() for bit in code.bits
    )
    return f"{harmful} flips were neither detected nor below {HARMLESS:g}"


def draw(numbers: Numbers) -> Figure:
    """The share detected, by size; and the largest error of what is decoded."""
    figure, (left, right) = new_figure(9, 4, columns=2, share_y=False)
    for index, (name, code) in enumerate(numbers["codes"].items()):
        for style, kind in (("-", "whole"), ("--", "entry")):
            cells = code[kind]
            label = name if kind == "whole" else None
            shares = [100 * cell.detected for cell in cells]
            harms = [max(cell.harm, 1e-9) for cell in cells]
            sizes = numbers["sizes"]
            line(left, index, sizes, shares, linestyle=style, label=label)
            line(right, index, sizes, harms, linestyle=style)
    left.set(xscale="log", ylabel="detected, percent")
    right.set(xscale="log", yscale="log", ylabel="error of the decoded gradient")
    right.axhline(HARMLESS, color="0.6", linewidth=0.8)
    for axes in (left, right):
        axes.set_xlabel("error over the message (dashed: in one entry)")
    figure.legend(loc="outside upper center", ncols=3)
    return figure
