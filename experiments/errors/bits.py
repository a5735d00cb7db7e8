"""Bit flips and errors of all sizes: detected, or harmless."""

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
    """Returns detections by bit and by size of the error."""
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
    """Returns per setting what is detected, and errors of decoded gradients."""
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
        decoded = jaxwgc.decode(code, messages, located, params)
        error = jnp.linalg.norm(decoded - exact) / jnp.linalg.norm(exact)
        is_detected = located.wrong.any() | located.refused | ~located.mask.all()
        return is_detected, jnp.where(located.refused, 0, error)

    keys = jax.random.split(key, runs)

    @jax.jit
    def every(setting):
        return jax.lax.map(lambda key: one_round(key, setting), keys)

    return [jax.tree.map(np.asarray, every(setting)) for setting in settings]


def flipped(code: jaxwgc.GradientCode, runs: int, key: jax.Array) -> list[Numbers]:
    """Returns per bit the detections, and the worst error of decoded gradients."""
    played = _play(code, corruptions.bit_flip, jnp.arange(NUM_BITS), runs, key)
    return [
        {
            "detected": int(detected.sum()),
            "harm": float(error.max()),
            "harmful": int(np.sum(error > HARMLESS)),
        }
        for detected, error in played
    ]


def sized(
    code: jaxwgc.GradientCode, share: float, runs: int, key: jax.Array
) -> list[Numbers]:
    """Returns detections by relative size of an error in a share of the entries."""

    def model_of(who, size):
        return corruptions.additive_noise(who, size, share)

    # Errors in one entry are relative to the norm of the message.
    scale = np.sqrt(NUM_PARAMETERS) if share < 1 else 1.0
    played = _play(code, model_of, jnp.asarray(SIZES * scale, jnp.float32), runs, key)
    return [
        {"detected": float(detected.mean()), "harm": float(error.max())}
        for detected, error in played
    ]


def tabulate(numbers: Numbers) -> ResultTable:
    """Returns a row per bit."""

    def row(bit):
        kind = "sign" if bit == 31 else "exponent" if bit >= 23 else "mantissa"
        outcomes = [code.bits[bit] for code in numbers["codes"].values()]
        return f"{bit}, {kind}", *(f"{o.detected} ({o.harm:.0e})" for o in outcomes)

    return ResultTable(
        f"One bit of one entry of one message is flipped, {numbers['rounds']:,} rounds "
        f"per bit, {NUM_PARAMETERS:,} parameters: rounds in which it is detected, and "
        "in brackets the largest relative error of the decoded gradient",
        ["bit", *numbers["codes"]],
        map(row, reversed(range(NUM_BITS))),
    )


def note(numbers: Numbers) -> str:
    """Returns how many flips were neither detected nor harmless."""
    every = (bit for code in numbers["codes"].values() for bit in code.bits)
    harmful = sum(bit.harmful for bit in every)
    return f"{harmful} flips were neither detected nor below {HARMLESS:g}"


def draw(numbers: Numbers) -> Figure:
    """Draws detections and the largest error of decoded gradients by size."""
    figure, (left, right) = new_figure(9, 4, columns=2, share_y=False)
    for index, (name, code) in enumerate(numbers["codes"].items()):
        for style, kind in (("-", "whole"), ("--", "entry")):
            look = {"linestyle": style, "label": name if kind == "whole" else None}
            shares = [100 * cell.detected for cell in code[kind]]
            harms = [max(cell.harm, 1e-9) for cell in code[kind]]
            for axes, values in ((left, shares), (right, harms)):
                line(axes, index, numbers["sizes"], values, **look)
    left.set(ylabel="detected, percent")
    right.set(yscale="log", ylabel="relative error of the decoded gradient")
    right.axhline(HARMLESS, color="0.6", linewidth=0.8)
    for axes in (left, right):
        axes.set(
            xscale="log", xlabel="relative error of the message (dashed: one entry)"
        )
    figure.legend(
        *left.get_legend_handles_labels(), loc="outside upper center", ncols=3
    )
    return figure
