"""Scores in the leading directions of a large sparse matrix, beside SciPy's `svds`."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator

import numpy as np

from experiments.runner.study import Once, Study, timed

# Rows, columns, topics and words a row: 5% non-zeros, but for words that come twice.
SIZES, QUICK_SIZES = (1_000_000, 2_000, 50, 132), (5_000, 200, 5, 20)
WAYS = {
    "svds, float64": "SciPy svds, float64",
    "svds, float32": "SciPy svds, float32",
    "stream": "SciPy's matrix as a block, float32",
    "bcoo": "BCOO, float32",
}
FEW = 10

# In a process of its own, whose largest resident set is then that of the scores.
PROGRAM = r"""
import json, pathlib, re, sys, time
import numpy as np, scipy.sparse, scipy.sparse.linalg

way, path, rank, oversampling, seed = sys.argv[1:]
rank, oversampling, seed = int(rank), int(oversampling), int(seed)

def peak():
    # Other than ru_maxrss, this does not remember the process that forked.
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024

parts = [np.load(f"{path}/{name}.npy") for name in ("data", "indices", "indptr")]
matrix = scipy.sparse.csr_array(tuple(parts))
dtype = np.float64 if way.endswith("float64") else np.float32
matrix = matrix.astype(dtype, copy=False)
more = {}
if way.startswith("svds"):
    before = peak()
    start = time.perf_counter()
    left, values, _ = scipy.sparse.linalg.svds(matrix, rank, random_state=seed)
    scores = np.sum(left**2, axis=1)
    seconds = time.perf_counter() - start
else:
    import jax
    from jaxwgc import sketching
    options = {"rank": rank, "oversampling": oversampling}
    key = jax.random.key(seed)
    small = matrix[:5 * matrix.shape[1]]
    if way == "stream":
        # What is compiled depends on no number of rows.
        sketching.rank_k_leverage_scores(key, sketching.Blocks([small]), **options)
        argument = sketching.Blocks([matrix])
    else:
        from jax.experimental import sparse
        coo = matrix.tocoo()
        del matrix
        indices = np.stack([coo.row, coo.col], axis=1).astype(np.int32)
        argument = sparse.BCOO(
            (jax.device_put(coo.data), jax.device_put(indices)),
            shape=coo.shape, indices_sorted=True,
        )
        del coo, indices
    before = peak()
    start = time.perf_counter()
    ranked = sketching.rank_k_leverage_scores(key, argument, **options)
    scores = np.asarray(ranked.scores)
    seconds = time.perf_counter() - start
    values = np.asarray(ranked.singular_values)
    more = {
        "gap": float(ranked.gap),
        "error_bound": float(ranked.error_bound),
        "is_ambiguous": bool(ranked.is_ambiguous),
    }
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

# Writes the matrix: a topic for every row, and counts of words drawn from it.
DRAWING = r"""
import sys
import numpy as np, scipy.sparse

path = sys.argv[1]
num_rows, num_columns, rank, num_words, seed = map(int, sys.argv[2:])
rng = np.random.default_rng(seed)
topics = rng.dirichlet(np.full(num_columns, 0.1), rank).cumsum(axis=1)
columns = np.empty((num_rows, num_words), np.int32)
topic_of_row = np.sort(rng.integers(0, rank, num_rows))
for topic in range(rank):
    rows = np.flatnonzero(topic_of_row == topic)
    draws = rng.random((len(rows), num_words)) * topics[topic, -1]
    columns[rows] = np.searchsorted(topics[topic], draws, side="right")
starts = np.arange(0, num_rows * num_words + 1, num_words, dtype=np.int32)
data = np.ones(num_rows * num_words, np.float32)
matrix = scipy.sparse.csr_array(
    (data, columns.reshape(-1), starts), shape=(num_rows, num_columns)
)
matrix.sum_duplicates()
for name in ("data", "indices", "indptr"):
    np.save(f"{path}/{name}.npy", getattr(matrix, name))
"""


def study(repeats: int, seed: int, quick: bool) -> Study:
    """Seconds, largest resident set, and errors of rows above the median score."""
    # One run each: the largest takes a minute.
    del repeats
    sizes = QUICK_SIZES if quick else SIZES
    num_rows, num_columns, rank, _ = sizes

    def show(row):
        def number(name, digits):
            return f"{row[name]:.{digits}f}" if name in row else "–"

        return {
            "way": WAYS[row["way"]],
            "seconds": f"{row['seconds']:.1f}",
            "share of svds, float64": f"{row['share']:.2f}",
            "peak of the process, MiB": f"{row['mebibytes']:,.0f}",
            "with the matrix alone, MiB": f"{row['mebibytes_before']:,.0f}",
            "worst error, percent": f"{100 * row['worst']:.2f}",
            "sum of scores": f"{row['sum_of_scores']:.3f}",
            "gap": number("gap", 2),
            "bound": number("error_bound", 3),
        }

    return timed(
        Once(rows, sizes, seed, num_rows=len(WAYS)),
        f"Scores in {rank} directions of a sparse matrix of {num_rows:,} × "
        f"{num_columns:,}, in three passes; errors relative to float64's svds, of rows "
        "above the median score",
        show,
    )


def rows(sizes: tuple[int, int, int, int], seed: int) -> Iterator:
    """One way after the other, each in a process of its own."""
    rank = sizes[2]
    with tempfile.TemporaryDirectory() as path:
        run(DRAWING, path, *sizes, seed)
        scores = {}
        first = None
        for way in WAYS:
            measured = json.loads(run(PROGRAM, way, path, rank, FEW, seed))
            scores[way] = np.load(f"{path}/{way}.npy").astype(float)
            truth = scores["svds, float64"]
            first = first or measured["seconds"]
            is_large = truth > np.median(truth)
            errors = np.abs(scores[way] / truth - 1)[is_large]
            yield {
                "way": way,
                "share": measured["seconds"] / first,
                "worst": float(errors.max()),
                **measured,
            }


def run(program: str, *arguments: object) -> bytes:
    """Returns what a program prints."""
    return subprocess.check_output(
        [sys.executable, "-c", program, *map(str, arguments)]
    )
