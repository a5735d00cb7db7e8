"""Time and error of leverage scores: exact, approximate, streamed, and of rank k."""

import functools
import tempfile
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
import scipy.sparse

from experiments.runner.study import Numbers, Once, Study, timed
from experiments.runner.timing import in_own_process, median_seconds, run_program
from jaxwgc import sketching

SHAPE = (100_000, 200)
APPROXIMATED_SHAPE = (100_000, 1_000)
EPSILONS = (0.5, 0.3)
NUM_ROWS = 5_000_000
NUM_COLUMNS = 100
BLOCK_ROWS = 50_000
RANKS = {"full rank": NUM_COLUMNS, "rank 3/5": NUM_COLUMNS * 3 // 5}

PROGRAM = """
from jaxwgc import sketching

num_rows, num_columns, block_rows, rank, seed = map(int, sys.argv[1:])
mixing = np.random.default_rng(seed).standard_normal((rank, num_columns), np.float32)

def blocks():
    for start in range(0, num_rows, block_rows):
        rng = np.random.default_rng((seed, start))
        shape = min(block_rows, num_rows - start), rank
        block = rng.standard_normal(shape, np.float32)
        yield block if rank == num_columns else block @ mixing

sketching.leverage_scores(np.eye(3, dtype=np.float32)).block_until_ready()
before = peak()
start = time.perf_counter()
scores = sketching.leverage_scores(sketching.Blocks(blocks, num_rows))
seconds = time.perf_counter() - start
start = time.perf_counter()
for block in blocks():
    pass
drawing = time.perf_counter() - start
print(json.dumps({
    "mebibytes": peak(),
    "mebibytes_before": before,
    "seconds": seconds,
    "seconds_of_drawing_once": drawing,
    "sum_of_scores": float(scores.sum(dtype=np.float64)),
}))
"""


def exact(repeats: int, seed: int, quick: bool) -> Study:
    """Returns exact scores against NumPy's SVD and the time of two matrix products."""
    num_rows, num_columns = (2_000, 50) if quick else SHAPE
    return timed(
        Once(exact_rows, num_rows, num_columns, repeats, seed),
        f"Leverage scores of {num_rows:,} × {num_columns}: milliseconds",
        {
            "matrix": "{matrix}",
            "dtype": "{dtype}",
            "two products": "{seconds[two_products]:1e3 .0f}",
            "jaxwgc": "{seconds[jaxwgc]:1e3 .0f}",
            "NumPy SVD": "{seconds[numpy_svd]:1e3 .0f}",
            "jaxwgc / products": ratio("jaxwgc", "two_products", 2),
            "SVD / jaxwgc": ratio("numpy_svd", "jaxwgc", 1),
            "worst error": "{worst_error:.1e}",
        },
    )


def ratio(above: str, below: str, digits: int) -> Callable[[Numbers], str]:
    """Returns the column of a ratio of two times."""

    def column(row):
        seconds = row["seconds"]
        return f"{seconds[above] / seconds[below]:.{digits}f}"

    return column


@jax.jit
def two_products(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns XᵀX, and X times a square matrix."""
    return matrix.T @ matrix, matrix @ matrix[: matrix.shape[1]]


def exact_rows(num_rows: int, num_columns: int, repeats: int, seed: int) -> Iterator:
    """Yields a row per matrix and precision."""
    rng = np.random.default_rng(seed)
    gaussian = rng.normal(size=(num_rows, num_columns))
    rank = num_columns * 3 // 4
    left_factor = rng.normal(size=(num_rows, rank))
    low_rank = left_factor @ rng.normal(size=(rank, num_columns))
    right, _ = np.linalg.qr(rng.normal(size=(num_columns, num_columns)))
    left, _ = np.linalg.qr(gaussian)
    graded = left * np.logspace(0, -10, num_columns) @ right
    for name, matrix, dtype in (
        ("well conditioned", gaussian, np.float64),
        ("rank 3/4", low_rank, np.float64),
        ("condition 1e10", graded, np.float64),
        ("well conditioned", gaussian, np.float32),
    ):
        matrix = matrix.astype(dtype)
        with jax.enable_x64(dtype == np.float64):
            on_device = jnp.asarray(matrix)
            score = jax.jit(sketching.leverage_scores)
            products, ours, numpy_svd = median_seconds(
                repeats,
                functools.partial(two_products, on_device),
                functools.partial(score, on_device),
                functools.partial(np.linalg.svd, matrix, full_matrices=False),
            )
            scores = np.asarray(score(on_device))
        wide = matrix.astype(np.float64)
        left, singular, _ = scipy.linalg.svd(wide, full_matrices=False)
        cutoff = max(matrix.shape) * np.finfo(dtype).eps * singular[0]
        rank = np.sum(singular > cutoff)
        exact_scores = np.sum(left[:, :rank] ** 2, axis=1)
        yield {
            "matrix": name,
            "dtype": np.dtype(dtype).name,
            "seconds": {
                "two_products": products,
                "jaxwgc": ours,
                "numpy_svd": numpy_svd,
            },
            "worst_error": np.abs(scores - exact_scores).max(),
        }


def approximate(repeats: int, seed: int, quick: bool) -> Study:
    """Returns approximate scores against the exact scores of the library."""
    num_rows, num_columns = (6_000, 100) if quick else APPROXIMATED_SHAPE
    return timed(
        Once(approximate_rows, num_rows, num_columns, repeats, seed),
        f"Approximate leverage scores of {num_rows:,} × {num_columns:,}, float32: "
        "milliseconds, and percent of rows",
        {
            "matrix": "{matrix}",
            "epsilon": "{epsilon}",
            "two products": "{seconds[two_products]:1e3 .0f}",
            "exact": "{seconds[exact]:1e3 .0f}",
            "approximate": "{seconds[approximate]:1e3 .0f}",
            "exact / approximate": ratio("exact", "approximate", 1),
            "within 1 ± epsilon": "{within_epsilon:100 .2f}",
            "within a factor 2": "{within_factor_2:100 .2f}",
        },
    )


def approximate_rows(rows: int, columns: int, repeats: int, seed: int) -> Iterator:
    """Yields a row per matrix and accuracy."""
    rng = np.random.default_rng(seed)
    scores = jax.jit(sketching.leverage_scores)
    estimate = sketching.approximate_leverage_scores
    estimate = jax.jit(estimate, static_argnames="epsilon")
    key = jax.random.key(seed)
    for name in ("Gaussian", "heavy tails", "rank 3/5"):
        matrix = draw(rng, name, rows, columns)
        estimates = [functools.partial(estimate, key, matrix, eps) for eps in EPSILONS]
        products_time, exact_time, *estimate_times = median_seconds(
            repeats,
            functools.partial(two_products, matrix),
            functools.partial(scores, matrix),
            *estimates,
        )
        truth = np.asarray(scores(matrix), np.float64)
        for index, epsilon in enumerate(EPSILONS):
            quotient = np.asarray(estimates[index](), np.float64) / truth
            yield {
                "matrix": name,
                "epsilon": epsilon,
                "seconds": {
                    "two_products": products_time,
                    "exact": exact_time,
                    "approximate": estimate_times[index],
                },
                "within_epsilon": np.mean(np.abs(quotient - 1) <= epsilon),
                "within_factor_2": np.mean((quotient >= 0.5) & (quotient <= 2)),
            }


def draw(
    rng: np.random.Generator, name: str, num_rows: int, num_columns: int
) -> jax.Array:
    """Returns a matrix with even scores, with uneven scores, or of lower rank."""
    width = num_columns * 3 // 5 if name == "rank 3/5" else num_columns
    matrix = rng.standard_normal((num_rows, width), np.float32)
    if name == "heavy tails":
        # Student's t with two degrees of freedom. With one, a single row is 1e6 times
        # as long as most, and the rest is at the cut-off of the rank in float32.
        matrix /= np.sqrt(rng.standard_exponential((num_rows, 1), np.float32))
    if width < num_columns:
        matrix = matrix @ rng.standard_normal((width, num_columns), np.float32)
    return jnp.asarray(matrix)


def streaming(repeats: int, seed: int, quick: bool) -> Study:
    """Returns peak memory and time of scores of blocks that are drawn on the fly.

    One run, since memory hardly varies.
    """
    num_rows, block_rows = (20_000, 5_000) if quick else (NUM_ROWS, BLOCK_ROWS)
    whole = num_rows * NUM_COLUMNS * 4 / 2**20

    def measure(rank):
        return run_program(PROGRAM, num_rows, NUM_COLUMNS, block_rows, rank, seed)

    return timed(
        [{"matrix": name, "": Once(measure, rank)} for name, rank in RANKS.items()],
        f"Streaming leverage scores of {num_rows:,} × {NUM_COLUMNS}, float32, in "
        f"blocks of {block_rows:,} rows",
        {
            "matrix": "{matrix}",
            "matrix, MiB": f"{whole:,.0f}",
            "peak of the process, MiB": "{mebibytes:.0f}",
            "JAX alone, MiB": "{mebibytes_before:.0f}",
            "seconds": "{seconds:.1f}",
            "of them drawing": "{seconds_of_drawing_once:2 .1f}",
            "sum of scores": "{sum_of_scores:.3f}",
        },
    )


# Rows, columns, topics and words per row: 5% non-zeros, less repeated words.
SIZES = (1_000_000, 2_000, 50, 132)
QUICK_SIZES = (5_000, 200, 5, 20)
WAYS = {
    "svds, float64": "SciPy svds, float64",
    "svds, float32": "SciPy svds, float32",
    "stream": "SciPy's matrix as a block, float32",
    "bcoo": "BCOO, float32",
}
FEW = 10

# Prints time, memory and scores of one way.
RANK_K_PROGRAM = """
import scipy.sparse, scipy.sparse.linalg

way, path, rank, oversampling, seed = sys.argv[1:]
rank, oversampling, seed = int(rank), int(oversampling), int(seed)
parts = [np.load(f"{path}/{name}.npy") for name in ("data", "indices", "indptr")]
matrix = scipy.sparse.csr_array(tuple(parts))
dtype = np.float64 if way.endswith("float64") else np.float32
matrix = matrix.astype(dtype, copy=False)
more = {}
if way.startswith("svds"):
    def score():
        left, *_ = scipy.sparse.linalg.svds(matrix, rank, random_state=seed)
        return np.sum(left**2, axis=1)
else:
    import jax
    from jax.experimental import sparse
    from jaxwgc import sketching
    options = {"rank": rank, "oversampling": oversampling}
    key = jax.random.key(seed)
    if way == "stream":
        # Compiled programs do not depend on the number of rows.
        small = matrix[:5 * matrix.shape[1]]
        sketching.rank_k_leverage_scores(key, sketching.Blocks([small]), **options)
        argument = sketching.Blocks([matrix])
    else:
        coo = matrix.tocoo()
        del matrix
        indices = np.stack([coo.row, coo.col], axis=1).astype(np.int32)
        entries = jax.device_put(coo.data), jax.device_put(indices)
        argument = sparse.BCOO(entries, shape=coo.shape, indices_sorted=True)
        del coo, indices, entries
    def score():
        ranked = sketching.rank_k_leverage_scores(key, argument, **options)
        more.update(gap=float(ranked.gap), error_bound=float(ranked.error_bound))
        return np.asarray(ranked.scores)
before = peak()
start = time.perf_counter()
scores = score()
seconds = time.perf_counter() - start
mebibytes = peak()
np.save(f"{path}/{way}.npy", scores)
print(json.dumps({
    "seconds": seconds,
    "mebibytes": mebibytes,
    "mebibytes_before": before,
    "sum_of_scores": float(scores.sum(dtype=np.float64)),
    **more,
}))
"""


def rank_k(repeats: int, seed: int, quick: bool) -> Study:
    """Returns time, peak memory, and errors of rows above the median score.

    One run each: the largest takes a minute.
    """
    sizes = QUICK_SIZES if quick else SIZES
    num_rows, num_columns, rank, _ = sizes

    def number(name, digits):
        return lambda row: f"{row[name]:.{digits}f}" if name in row else "–"

    return timed(
        Once(rank_k_rows, sizes, seed),
        f"Scores in {rank} directions of a sparse matrix of {num_rows:,} × "
        f"{num_columns:,}, in three passes; errors relative to float64's svds, of rows "
        "above the median score",
        {
            "way": lambda row: WAYS[row["way"]],
            "seconds": "{seconds:.1f}",
            "share of svds, float64": "{share:.2f}",
            "peak of the process, MiB": "{mebibytes:,.0f}",
            "with the matrix alone, MiB": "{mebibytes_before:,.0f}",
            "worst error, percent": "{worst:100 .2f}",
            "sum of scores": "{sum_of_scores:.3f}",
            "gap": number("gap", 2),
            "bound": number("error_bound", 3),
        },
    )


def draw_counts(path: str, sizes: tuple[int, int, int, int], seed: int) -> None:
    """Saves counts of words, drawn from one topic per row."""
    num_rows, num_columns, num_topics, num_words = sizes
    rng = np.random.default_rng(seed)
    topics = rng.dirichlet(np.full(num_columns, 0.1), num_topics).cumsum(axis=1)
    columns = np.empty((num_rows, num_words), np.int32)
    topic_of_row = np.sort(rng.integers(0, num_topics, num_rows))
    for topic in range(num_topics):
        rows = np.flatnonzero(topic_of_row == topic)
        draws = rng.random((len(rows), num_words)) * topics[topic, -1]
        columns[rows] = np.searchsorted(topics[topic], draws, side="right")
    starts = np.arange(0, num_rows * num_words + 1, num_words, dtype=np.int32)
    data = np.ones(num_rows * num_words, np.float32)
    shape = num_rows, num_columns
    matrix = scipy.sparse.csr_array((data, columns.reshape(-1), starts), shape)
    matrix.sum_duplicates()
    for name in ("data", "indices", "indptr"):
        np.save(f"{path}/{name}.npy", getattr(matrix, name))


def rank_k_rows(sizes: tuple[int, int, int, int], seed: int) -> Iterator:
    """Yields a row per way, each from a process of its own."""
    with tempfile.TemporaryDirectory() as path:
        in_own_process(draw_counts, path, sizes, seed)
        first = None
        truth = np.zeros(0)
        for way in WAYS:
            measured = run_program(RANK_K_PROGRAM, way, path, sizes[2], FEW, seed)
            scores = np.load(f"{path}/{way}.npy").astype(float)
            if first is None:
                first = measured["seconds"]
                truth = scores
            errors = np.abs(scores / truth - 1)[truth > np.median(truth)]
            share = measured["seconds"] / first
            worst = float(errors.max())
            yield {"way": way, "share": share, "worst": worst, **measured}
