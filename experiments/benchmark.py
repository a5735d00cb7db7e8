"""Speed and accuracy, with the peers timed in the same run."""

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.linalg

import jaxwgc
from experiments import descent, linear_regression, results
from jaxwgc import _combining, _decoders, _weights, sketching

CODES = ((50, 20, 30), (100, 100, 10), (200, 200, 20))
NUM_MASKS = 2_000
# Replication and stragglers of Bernoulli codes with 100 workers and parts.
BERNOULLI = ((10, 10), (10, 30), (4, 20))
NUM_STUDY_MASKS = 10_000
NUM_PATTERNS = 1_000
SCORES_SHAPE = (100_000, 200)
TABLE2_RUNS = 2_000


def benchmark(
    repeats: int = 7, seed: int = 0, out: Path = Path("results"), quick: bool = False
) -> None:
    """Speed and accuracy: decoding, leverage scores, a training step, table 2.

    Args:
        repeats: Timings of each entry; the median counts.
        seed: Of the random numbers.
        out: Folder for the tables (JSON and Markdown).
        quick: Small sizes, to see that everything runs.
    """
    folder = results.Results("Benchmark, each entry", out, repeats)
    sections: list[tuple[str, Callable[..., Any]]] = [
        ("accuracy", accuracy),
        ("decoding", decoding),
        ("least_squares", least_squares),
        ("leverage_scores", leverage_scores),
        ("step", training_step),
        ("table2", table2),
    ]
    content: dict[str, Any] = {
        "command": f"python -m experiments benchmark --repeats {repeats} --seed {seed}"
    }
    with results.progress_bar() as progress:
        task = progress.add_task("sections", total=len(sections))
        for name, section in sections:
            progress.update(task, description=name)
            table, numbers = section(repeats, seed, quick)
            content[name] = numbers
            folder.add_table(f"benchmark_{name}.md", table)
            progress.advance(task)
            table.print()
    folder.add_json("benchmark.json", content)
    folder.save()


def random_masks(seed: int, code: jaxwgc.GradientCode, number: int) -> np.ndarray:
    """Masks that lose exactly as many workers as the code tolerates."""
    rng = np.random.default_rng(seed)
    order = rng.random((number, code.num_workers)).argsort(axis=1).argsort(axis=1)
    return order >= code.num_stragglers


def median_seconds(repeats: int, *functions: Callable[[], Any]) -> list[float]:
    """Median times of functions that are called in turn, after one call each."""
    for function in functions:
        jax.block_until_ready(function())
    times = np.empty((repeats, len(functions)))
    for row in times:
        for column, function in enumerate(functions):
            start = time.perf_counter()
            jax.block_until_ready(function())
            row[column] = time.perf_counter() - start
    return np.median(times, axis=0).tolist()


def accuracy(repeats: int, seed: int, quick: bool):
    """Errors of decoding weights and of decoded gradients, both orders of the points.

    The published order is decoded by Lagrange's formula alone, so that its own accuracy
    shows; the interleaved one as the library does it.
    """
    del repeats
    table = results.ResultTable(
        f"Accuracy over {20 if quick else NUM_PATTERNS} random patterns with exactly f "
        "answers: median / 99% / worst",
        [
            "(n, k, d)",
            "order of points",
            "largest entry of B",
            "gradient, float32",
            "weights, float32",
            "weights, float64",
        ],
    )
    numbers = []
    for parameters in CODES:
        for interleave in (True, False):
            code = jaxwgc.codes.reed_solomon(*parameters, interleave=interleave)
            masks = random_masks(seed, code, 20 if quick else NUM_PATTERNS)
            weights, gradient = errors(code, masks, seed)
            with jax.enable_x64(True):
                weights_float64, _ = errors(code, masks, seed)
            largest = float(np.abs(code.encoding_matrix).max())
            order = "interleaved" if interleave else "published"
            numbers.append(
                {
                    "code": parameters,
                    "order": order,
                    "point_step": code.point_step,
                    "largest_entry": largest,
                    "gradient_float32": spread(gradient),
                    "weights_float32": spread(weights),
                    "weights_float64": spread(weights_float64),
                }
            )
            table.add_row(
                str(parameters),
                order,
                f"{largest:.1e}",
                show_spread(gradient),
                show_spread(weights),
                show_spread(weights_float64),
            )
    return table, numbers


def errors(code: jaxwgc.GradientCode, masks: np.ndarray, seed: int):
    """Per mask: largest entry of |a^T B - 1|, and relative error of a gradient."""

    @jax.jit
    def decode(masks, gradients):
        if code.point_step == 1:
            weights = _decoders.lagrange(masks, code.point_step)
        else:
            weights = _weights.solve(code, masks, code.decoder)
        messages = jaxwgc.encode(code, gradients)
        like = jax.ShapeDtypeStruct(gradients.shape[1:], gradients.dtype)
        return weights[:, 0], _combining.combine_messages(
            code, weights, messages, masks, like
        )

    gradients = np.random.default_rng(seed).normal(size=(code.num_parts, 100))
    gradients = gradients.astype(jnp.result_type(float))
    weights, decoded = decode(jnp.asarray(masks), gradients)
    # In float64 from here on, so that only the library's rounding counts.
    reached = np.asarray(weights, np.complex128) @ code.encoding_matrix
    truth = gradients.astype(np.float64).sum(axis=0)
    miss = np.linalg.norm(np.asarray(decoded, np.float64) - truth, axis=1)
    return np.abs(reached - 1).max(axis=1), miss / np.linalg.norm(truth)


def spread(errors: np.ndarray) -> dict[str, float]:
    """Median, 99th percentile and worst."""
    return {
        "median": float(np.median(errors)),
        "percentile_99": float(np.quantile(errors, 0.99)),
        "worst": float(errors.max()),
    }


def show_spread(errors: np.ndarray) -> str:
    """For a cell."""
    return " / ".join(f"{value:.1e}" for value in spread(errors).values())


def decoding(repeats: int, seed: int, quick: bool):
    """Microseconds a mask, a batch of masks against NumPy one mask at a time."""
    number = 100 if quick else NUM_MASKS
    table = results.ResultTable(
        f"Decoding {number} masks: microseconds a mask, median of {repeats}",
        [
            "(n, k, d)",
            "NumPy lstsq",
            "NumPy Lagrange",
            "jaxwgc complex64",
            "jaxwgc complex128",
            "lstsq / complex64",
        ],
    )
    numbers = []
    for parameters in CODES:
        code = jaxwgc.codes.reed_solomon(*parameters)
        masks = random_masks(seed, code, number)
        decode = jax.jit(functools.partial(jaxwgc.decoding_weights, code))
        # The peers take a mask at a time, so a part of the masks tells.
        few = masks[: 10 if quick else 2_000 // code.num_workers]
        peer_lstsq, peer_lagrange = median_seconds(
            repeats,
            lambda c=code, f=few: [numpy_lstsq(c, mask) for mask in f],
            lambda c=code, f=few: [numpy_lagrange(c, mask) for mask in f],
        )
        (single,) = median_seconds(repeats, lambda d=decode, m=masks: d(m))
        with jax.enable_x64(True):
            (double,) = median_seconds(repeats, lambda d=decode, m=masks: d(m))
        times = {
            "numpy_lstsq": peer_lstsq / len(few),
            "numpy_lagrange": peer_lagrange / len(few),
            "complex64": single / len(masks),
            "complex128": double / len(masks),
        }
        ratio = times["numpy_lstsq"] / times["complex64"]
        numbers.append({"code": parameters, "seconds": times, "ratio": ratio})
        table.add_row(
            str(parameters),
            *(f"{1e6 * seconds:.3g}" for seconds in times.values()),
            f"{ratio:,.0f}",
        )
    return table, numbers


def numpy_lstsq(code: jaxwgc.GradientCode, mask: np.ndarray) -> np.ndarray:
    """What people do without a closed form."""
    rows = code.encoding_matrix[mask]
    return np.linalg.lstsq(rows.T, np.ones(code.num_parts), rcond=None)[0]


def numpy_lagrange(code: jaxwgc.GradientCode, mask: np.ndarray) -> np.ndarray:
    """The products of Lagrange's formula for one mask."""
    assert code.point_step is not None
    workers = np.flatnonzero(mask)
    points = np.exp(2j * np.pi * code.point_step * workers / code.num_workers)
    differences = points - points[:, None]
    np.fill_diagonal(differences, 1)
    factors = points / differences
    np.fill_diagonal(factors, 1)
    return factors.prod(axis=1)


def least_squares(repeats: int, seed: int, quick: bool):
    """Mean decoding error of Bernoulli codes over many masks, against a NumPy loop.

    NumPy's time is that of one pass, since it is long. "off" is the relative difference
    of the mean error from NumPy's.
    """
    number = 200 if quick else NUM_STUDY_MASKS
    table = results.ResultTable(
        f"Bernoulli codes by least squares, {number:,} masks: microseconds a mask",
        [
            "(n, k, d), s",
            "lstsq",
            "float32",
            "float64",
            "lstsq / float32",
            "lstsq / float64",
            "mean error",
            "off, float32",
            "off, float64",
        ],
    )
    numbers = []
    for replication, num_stragglers in BERNOULLI:
        code = jaxwgc.codes.bernoulli(jax.random.key(seed), 100, 100, replication)
        order = np.random.default_rng(seed).random((number, 100)).argsort(axis=1)
        masks = order.argsort(axis=1) >= num_stragglers
        # Pairs of (seconds a mask, mean error).
        measured = {"numpy": numpy_mean_error(code, masks)}
        for x64, name in ((False, "float32"), (True, "float64")):
            with jax.enable_x64(x64):
                errors = jax.jit(
                    lambda masks, code=code: jaxwgc.decoding_error(
                        code, masks, decoder="least_squares"
                    )
                )
                (seconds,) = median_seconds(repeats, lambda e=errors, m=masks: e(m))
                mean = float(np.asarray(errors(masks), np.float64).mean())
            measured[name] = seconds / number, mean
        peer, truth = measured["numpy"]
        ratios = [peer / measured[name][0] for name in ("float32", "float64")]
        misses = [abs(measured[name][1] / truth - 1) for name in ("float32", "float64")]
        numbers.append(
            {
                "code": (100, 100, replication),
                "num_stragglers": num_stragglers,
                "seconds": {name: own[0] for name, own in measured.items()},
                "mean_error": {name: own[1] for name, own in measured.items()},
                "ratios": ratios,
                "relative_differences": misses,
            }
        )
        table.add_row(
            f"(100, 100, {replication}), {num_stragglers}",
            *(f"{1e6 * seconds:.3g}" for seconds, _ in measured.values()),
            *(f"{ratio:.1f}" for ratio in ratios),
            f"{truth:.4f}",
            *(f"{miss:.0e}" for miss in misses),
        )
    return table, numbers


def numpy_mean_error(code: jaxwgc.GradientCode, masks: np.ndarray):
    """Seconds a mask and mean error of what people do without this library."""
    start = time.perf_counter()
    total = 0.0
    for mask in masks:
        reached = numpy_lstsq(code, mask) @ code.encoding_matrix[mask]
        total += np.sum((reached - 1) ** 2)
    return (time.perf_counter() - start) / len(masks), total / len(masks)


def leverage_scores(repeats: int, seed: int, quick: bool):
    """Exact scores against NumPy's SVD and the floor of two matrix products."""
    num_rows, num_columns = (2_000, 50) if quick else SCORES_SHAPE
    table = results.ResultTable(
        f"Leverage scores of {num_rows:,} x {num_columns}: milliseconds",
        [
            "matrix",
            "dtype",
            "two products",
            "jaxwgc",
            "NumPy SVD",
            "jaxwgc / products",
            "SVD / jaxwgc",
            "worst error",
        ],
    )
    numbers = []
    rng = np.random.default_rng(seed)
    gaussian = rng.normal(size=(num_rows, num_columns))
    low_rank = rng.normal(size=(num_rows, num_columns * 3 // 4))
    low_rank = low_rank @ rng.normal(size=(num_columns * 3 // 4, num_columns))
    orthogonal = np.linalg.qr(rng.normal(size=(num_columns, num_columns)))[0]
    graded = np.linalg.qr(gaussian)[0] * np.logspace(0, -10, num_columns) @ orthogonal
    cases = [
        ("well conditioned", gaussian, np.float64),
        ("rank 3/4", low_rank, np.float64),
        ("condition 1e10", graded, np.float64),
        ("well conditioned", gaussian, np.float32),
    ]
    for name, matrix, dtype in cases:
        matrix = matrix.astype(dtype)
        with jax.enable_x64(dtype == np.float64):
            on_device = jnp.asarray(matrix)
            small = on_device[:num_columns]
            score = jax.jit(sketching.leverage_scores)
            two_products = jax.jit(lambda x, y: (x.T @ x, x @ y))
            floor, ours, peer = median_seconds(
                repeats,
                functools.partial(two_products, on_device, small),
                functools.partial(score, on_device),
                functools.partial(np.linalg.svd, matrix, full_matrices=False),
            )
            found = np.asarray(score(on_device))
        left, singular, _ = scipy.linalg.svd(
            matrix.astype(np.float64), full_matrices=False
        )
        rank = np.sum(singular > max(matrix.shape) * np.finfo(dtype).eps * singular[0])
        worst = np.abs(found - np.sum(left[:, :rank] ** 2, axis=1)).max()
        numbers.append(
            {
                "matrix": name,
                "dtype": np.dtype(dtype).name,
                "seconds": {"two_products": floor, "jaxwgc": ours, "numpy_svd": peer},
                "rank": int(rank),
                "worst_error": worst,
            }
        )
        table.add_row(
            name,
            np.dtype(dtype).name,
            f"{1e3 * floor:.0f}",
            f"{1e3 * ours:.0f}",
            f"{1e3 * peer:.0f}",
            f"{ours / floor:.2f}",
            f"{peer / ours:.1f}",
            f"{worst:.1e}",
        )
    return table, numbers


def training_step(repeats: int, seed: int, quick: bool):
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


def table2(repeats: int, seed: int, quick: bool):
    """Wall time of the four cells of table 2, compilation included."""
    del repeats
    runs = 20 if quick else TABLE2_RUNS
    start = time.perf_counter()
    with jax.enable_x64(True):
        for compression in linear_regression.COMPRESSIONS:
            jaxwgc.monte_carlo(
                functools.partial(
                    linear_regression.one_run,
                    compression=compression,
                    step_size=linear_regression.PROTOCOLS["doubled"],
                ),
                jax.random.key(seed),
                runs,
                batch_size=linear_regression.BATCH_SIZE,
            )
    seconds = time.perf_counter() - start
    table = results.ResultTable(
        "Table 2, four cells, float64, compilation included", ["runs a cell", "seconds"]
    )
    table.add_row(f"{runs:,}", f"{seconds:.1f}")
    return table, {"runs": runs, "seconds": seconds}
