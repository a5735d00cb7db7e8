"""Distortion of embeddings by size, and whether recommended sizes keep their bound."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxwgc
from experiments.runner.study import Effort, Numbers, Study, Trial
from experiments.runner.tables import ResultTable, interval
from experiments.sketching import data
from jaxwgc import sketching

# Rows of the sketch per column.
FACTORS = (4, 16, 64)
FEW_FACTORS = (4, 16)
# Half of the rows of other sections: normal variables for 64 p rows of S take time.
MAX_ROWS = 4096
KINDS = ("GA", "T1")

# make(key, sketch_size, scores)
Make = Callable[[jax.Array, int, jax.Array], sketching.Embedding]


def oblivious(construct: Callable[..., sketching.Embedding], **options: int) -> Make:
    """Returns the constructor of an embedding that does not use the scores."""

    def make(key, size, scores):
        return construct(key, size, len(scores), **options)

    return make


def by_leverage(key: jax.Array, size: int, scores: jax.Array) -> sketching.Embedding:
    """Draws rows by leverage scores."""
    return sketching.row_sampling(key, size, len(scores), scores)


EMBEDDINGS: dict[str, Make] = {
    "gaussian": oblivious(sketching.gaussian),
    "rademacher": oblivious(sketching.rademacher),
    "srht": oblivious(sketching.srht),
    "count_sketch": oblivious(sketching.count_sketch),
    "sparse_sign": oblivious(sketching.sparse_sign),
    "sparse_stack": oblivious(sketching.sparse_stack),
    "row_sampling, uniform": oblivious(sketching.row_sampling),
    "row_sampling, leverage": by_leverage,
}


def study(effort: Effort, key: jax.Array) -> Study:
    """Returns a cell per embedding and size."""
    data_key, run_key = jax.random.split(key)
    num_rows, num_columns = data.sizes(effort)
    num_rows = min(num_rows, MAX_ROWS)
    problems = regressions(data_key, num_rows, num_columns)
    factors = FACTORS if effort.is_full else FEW_FACTORS
    sizes = [factor * num_columns for factor in factors]
    cells = {}
    for name, make in EMBEDDINGS.items():
        cells[name] = [Trial(one_run, make, size, problems) for size in sizes]
    return Study(
        {
            "num_rows": num_rows,
            "num_columns": num_columns,
            "factors": factors,
            "distortion": cells,
        },
        key=run_key,
        runs=effort.runs,
        # Sequential: compiled faster, and as fast on a CPU.
        batch_size=1,
        tables={"distortion": tabulate},
    )


def regressions(
    key: jax.Array, num_rows: int, num_columns: int
) -> dict[str, data.Regression]:
    """Returns problems of the kinds of data in the tables."""
    problems = data.regressions(key, num_rows, num_columns)
    return {kind: problems[kind] for kind in KINDS}


def one_run(
    key: jax.Array, make: Make, size: int, problems: dict[str, data.Regression]
) -> Numbers:
    """Returns distortions by kind of data, in float32."""

    def distortion(problem: data.Regression) -> jax.Array:
        basis = jnp.asarray(problem.basis, jnp.float32)
        scores = jnp.asarray(problem.scores, jnp.float32)
        return sketching.embedding_distortion(basis, make(key, size, scores))

    return {kind: distortion(problem) for kind, problem in problems.items()}


def label(name: str) -> str:
    """Returns the name of an embedding with its function as code."""
    family, comma, options = name.partition(",")
    return f"`{family}`{comma}{options}"


def tabulate(numbers: Numbers) -> ResultTable:
    """Returns a row per embedding, and a column per size and kind of data."""

    def cell(summary: jaxwgc.Summary) -> str:
        if summary.mean < 1:
            return interval(summary, 3)
        return interval(summary, 2 if summary.mean < 10 else 1)

    first_cells = next(iter(numbers["distortion"].values()))
    kinds = list(first_cells[0])
    heads = [f"{kind}, m = {f}p" for kind in kinds for f in numbers["factors"]]
    table = ResultTable(
        f"Distortion, N = {numbers['num_rows']:,} and p = {numbers['num_columns']}, "
        f"mean of {numbers['runs']} embeddings",
        ["embedding", *heads],
    )
    for name, by_size in numbers["distortion"].items():
        row = [label(name)]
        for kind in kinds:
            for by_kind in by_size:
                row.append(cell(by_kind[kind]))
        table.rows.append(row)
    return table


# Embeddings with a few non-zeros in each column.
SPARSE = ("sparse_sign", "sparse_stack")
# Entries per column of the embeddings that `stacks` compares.
NUM_NONZEROS = (2, 4, 8)
# Differences between them are small, and need more runs than other sections.
STACK_RUNS = 4
FEW_NUM_NONZEROS = (2,)
IDENTITY = "unit vectors"


def stacks(effort: Effort, key: jax.Array) -> Study:
    """Returns a cell per number of non-zeros, size and way to choose their rows."""
    data_key, run_key = jax.random.split(key)
    num_rows, num_columns = data.sizes(effort)
    num_rows = min(num_rows, MAX_ROWS)
    problems = regressions(data_key, num_rows, num_columns)
    # The subspace of unit vectors has rows of leverage 1, and others of leverage 0.
    unit_vectors = np.eye(num_rows, num_columns)
    problems[IDENTITY] = data.Regression.of(IDENTITY, unit_vectors, unit_vectors[:, 0])
    nonzeros = NUM_NONZEROS if effort.is_full else FEW_NUM_NONZEROS
    cells: Numbers = {}
    for number in nonzeros:
        for name in SPARSE:
            make = oblivious(getattr(sketching, name), num_nonzeros=number)
            sizes = [factor * num_columns for factor in FEW_FACTORS]
            trials = [Trial(one_run, make, size, problems) for size in sizes]
            cells[f"{name}, {number} non-zeros"] = trials
    return Study(
        {
            "num_rows": num_rows,
            "num_columns": num_columns,
            "factors": FEW_FACTORS,
            "distortion": cells,
        },
        key=run_key,
        runs=STACK_RUNS * effort.runs,
        batch_size=1,
        tables={"stacks": tabulate},
    )


EPSILON = 0.5
DELTA = 0.05
# Mean distortions: the size for `count_sketch` grows with the square of p.
NUM_COLUMNS = 5
NUM_ROWS = 16_384
FEW_ROWS = 2048
# The smaller size of `SPARSE` needs log(p / δ) / ε non-zeros in each column of S.
MORE_NONZEROS = ", 10 non-zeros"
# Failures are rare, and need more runs than other sections.
MORE_RUNS = 10
# Rows and columns: one column, some, and nearly as many as rows.
SHAPES = {"one column": (16_384, 1), "p = 5": (16_384, 5), "p near N": (16, 15)}
SMALL_SHAPES = {"one column": (256, 1), "p near N": (16, 15)}
# Rows of dense embeddings: more would take time, and show nothing else.
DENSE_ROWS = 1024
# Uniform rows of coherent data may take a hundred times as many draws as rows.
MAX_DRAWS = 20_000
NONZEROS = {"one column": 8, "p = 5": 10, "p near N": 12}
NAMES = tuple(EMBEDDINGS)


def cell(
    name: str, problem: data.Regression, limit: int, nonzeros: int = 10
) -> Numbers:
    """Returns the recommended size, and its distortions if it is within the limit."""
    num_rows, num_columns = problem.basis.shape
    options: dict[str, Any] = {}
    make = EMBEDDINGS.get(name)
    if name == "srht":
        options = {"num_rows": num_rows}
    elif name == "row_sampling, uniform":
        options = {"coherence": max(num_columns, num_rows * problem.scores.max())}
    family = getattr(sketching, name.split(",")[0])
    if name.endswith(MORE_NONZEROS):
        options = {"num_nonzeros": nonzeros}
        make = oblivious(family, **options)
    size = sketching.recommended_sketch_size(
        family, num_columns, EPSILON, DELTA, **options
    )
    numbers: Numbers = {"size": size}
    if size <= limit:
        numbers[""] = Trial(one_run, make, size, {"": problem})
    return numbers


def recommended(effort: Effort, key: jax.Array) -> Study:
    """Returns a cell per embedding and kind of data, with its mean distortion."""
    num_rows = NUM_ROWS if effort.is_full else FEW_ROWS
    data_key, run_key = jax.random.split(key)
    problems = regressions(data_key, num_rows, NUM_COLUMNS)
    # Both sizes of sparse embeddings in turn; rows by scores before uniform rows.
    names: list[str] = []
    for name in (*NAMES[:6], *reversed(NAMES[6:])):
        names.append(name)
        if name in SPARSE:
            names.append(name + MORE_NONZEROS)
    cells = {}
    for name in names:
        cells[name] = {
            kind: cell(name, problem, num_rows) for kind, problem in problems.items()
        }
    return Study(
        {"num_rows": num_rows, "embeddings": cells},
        key=run_key,
        runs=effort.runs,
        batch_size=1,
        reduce=reduce,
        tables={"recommended": tabulate_recommended},
    )


def promise(effort: Effort, key: jax.Array) -> Study:
    """Returns a cell per embedding, shape and kind of data, with its failures."""
    shapes = SHAPES if effort.is_full else SMALL_SHAPES
    data_key, run_key = jax.random.split(key)

    def of_kind(name: str, shape: str, kind: str) -> Numbers:
        num_rows, num_columns = shapes[shape]
        if name in ("gaussian", "rademacher"):
            num_rows = min(num_rows, DENSE_ROWS)
        problem = regressions(data_key, num_rows, num_columns)[kind]
        if name in SPARSE:
            name += MORE_NONZEROS
        return cell(name, problem, MAX_DRAWS, NONZEROS[shape])

    cells: Numbers = {}
    for name in NAMES:
        cells[name] = {}
        for shape in shapes:
            for kind in KINDS:
                cells[name][f"{shape}, {kind}"] = of_kind(name, shape, kind)
    return Study(
        {"families": cells},
        key=run_key,
        runs=MORE_RUNS * effort.runs,
        batch_size=1,
        reduce=reduce,
        tables={"promise": tabulate_promise},
    )


def reduce(trials: Numbers) -> Numbers:
    """Returns the number of distortions above ε, the largest one, and their mean."""
    distortions = np.asarray(trials[""])
    return {
        # NaN is a failure.
        "failures": int(np.sum(~(distortions <= EPSILON))),
        "largest": float(distortions.max()),
        "distortion": jaxwgc.summarize(distortions),
    }


def tabulate_recommended(numbers: Numbers) -> ResultTable:
    """Returns a row per setting."""
    runs = numbers["runs"]

    def cells(record):
        size = f"{record['size']:,}"
        if "failures" not in record:
            return [size, "> N", "–"]
        within = f"{runs - record['failures']} of {runs}"
        return [size, within, interval(record["distortion"], 3)]

    heads = ["embedding"]
    for kind in KINDS:
        heads.append(f"{kind}: size")
        heads.append(f"{kind}: at most {EPSILON}")
        heads.append(f"{kind}: mean distortion")
    table = ResultTable(
        f"Recommended sizes for p = {NUM_COLUMNS}, ε = {EPSILON} and δ = {DELTA}, "
        f"N = {numbers['num_rows']:,}: of {runs} embeddings those with a distortion "
        "of at most ε",
        heads,
    )
    for name, by_kind in numbers["embeddings"].items():
        row = [label(name)]
        for record in by_kind.values():
            row.extend(cells(record))
        table.rows.append(row)
    return table


def tabulate_promise(numbers: Numbers) -> ResultTable:
    """Returns a row per family."""
    families = numbers["families"]
    runs = numbers["runs"]

    def cell(record: Numbers) -> str:
        size = f"{record['size']:,}"
        if "failures" not in record:
            return f"{size}: –"
        return f"{size}: {record['failures']:,} ({record['largest']:.2g})"

    first_family = next(iter(families.values()))
    table = ResultTable(
        f"Recommended sizes for ε = {EPSILON} and δ = {DELTA}: how many of {runs:,} "
        f"distortions are above ε, where the promise is at most {DELTA * runs:.0f} "
        "(and the largest of all)",
        ["embedding", *first_family],
    )
    for name, records in families.items():
        shown = [cell(record) for record in records.values()]
        table.rows.append([label(name), *shown])
    return table
