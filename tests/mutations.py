"""Small faults are put into the core, one at a time: do tests fail? Too long for CI.

    python -m tests.mutations                             120 of them, an hour or two
    python -m tests.mutations --seed 1 --count 20         others
    python -m tests.mutations --skip 40                   without the first 40
    python -m tests.mutations jaxwgc/decoders             in one folder or file
    python -m tests.mutations jaxwgc/codes/_binary.py:60  in one line

Works in a copy of the tree. Prints a line a fault: what was, what it became, and the
first test that failed or SURVIVED; then how many were caught. A test that takes longer
than two minutes counts as failed. Module-level constants stay as they are (sizes of
batches, limits of searches), and so do annotations, decorators and messages of errors.
"""

import argparse
import ast
import collections
import contextlib
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[1]
# What is mutated, and its tests after those of the same name, most likely ones first.
DECODERS = (
    "decoders/test_least_squares decoders/test_decoder test_coding test_every_path "
    "decoders/test_devices test_refusals"
)
LAGRANGE = "decoders/test_lagrange codes/test_reed_solomon decoders/test_decoder"
TESTS = {
    "jaxwgc/_arrays.py": "decoders/test_least_squares test_dtypes",
    "jaxwgc/aggregate/": "aggregate/test_methods aggregate/test_state "
    "aggregate/test_training test_refusals test_aggregate_checks "
    "aggregate/test_memory aggregate/test_warnings aggregate/test_correct_errors",
    "jaxwgc/coding/_arrivals.py": "test_coding codes/test_multi_message "
    "test_every_path decoders/test_devices",
    "jaxwgc/studies/_diagnosis.py": "",
    "jaxwgc/studies/_many_masks.py": "studies/test_diagnosis "
    "studies/test_worst_pattern",
    "jaxwgc/studies/_ridge_errors.py": "studies/test_worst_pattern",
    "jaxwgc/coding/_requests.py": "codes/test_replicated test_precision",
    "jaxwgc/coding/_weighting.py": "test_every_path test_dtypes",
    "jaxwgc/studies/_worst_pattern.py": "",
    "jaxwgc/coding/": "test_coding test_dtypes test_every_path "
    "test_gradients codes/test_communication_efficient decoders/test_devices",
    "jaxwgc/decoders/_decoder.py": "",
    "jaxwgc/codes/_proportional_placement.py": "codes/test_any_placement test_refusals",
    "jaxwgc/codes/_worst_rounding.py": "codes/test_any_placement",
    "jaxwgc/decoders/_dual.py": LAGRANGE,
    "jaxwgc/decoders/_dual_code.py": f"codes/test_any_placement {DECODERS}",
    "jaxwgc/decoders/_interpolation.py": LAGRANGE,
    "jaxwgc/decoders/_lagrange.py": LAGRANGE,
    "jaxwgc/decoders/_one_copy.py": f"codes/test_replicated {DECODERS}",
    "jaxwgc/decoders/": DECODERS,
    "jaxwgc/stragglers/_types.py": "test_aggregate_checks test_refusals",
    "jaxwgc/stragglers/": "stragglers/test_distributions test_refusals "
    "stragglers/test_inputs "
    "stragglers/test_late stragglers/test_fit stragglers/test_waiting "
    "stragglers/test_unit_rounds stragglers/test_combined_delays "
    "stragglers/test_delayed test_aggregate_checks "
    "stragglers/test_devices",
    "jaxwgc/sketching/_samplers/_sample_partitions.py": "sketching/test_sampling "
    "sketching/test_rescaling",
    "jaxwgc/sketching/_samplers/": "sketching/test_row_sampling",
}
PAIRS = (
    "Add Sub, Mult Div, BitAnd BitOr, LShift RShift, And Or, Eq NotEq, Is IsNot, "
    "In NotIn, Lt LtE, Gt GtE"
)
SWAPS = {ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult}
for pair in PAIRS.split(", "):
    one, other = (getattr(ast, name) for name in pair.split())
    SWAPS |= {one: other, other: one}
OPPOSITES = {ast.Lt: ast.Gt, ast.LtE: ast.Gt, ast.Gt: ast.Lt, ast.GtE: ast.Lt}
NAMES = {"max": "min", "maximum": "minimum", "any": "all", "ceil": "floor"}
NAMES |= {new: old for old, new in NAMES.items()}
DROPPED = ("stop_gradient", "abs", "sqrt", "ceil", "expm1", "log1p")


class Mutation(NamedTuple):
    """One fault: the bytes from start to stop of a file become `after`."""

    path: str
    line: int
    kind: str
    start: int
    stop: int
    before: str
    after: str

    def __str__(self):
        return f"{self.path}:{self.line} ({self.kind}): {self.before}  ->  {self.after}"


def alternatives(node):
    """Kinds of faults in an expression, and what it becomes."""
    text = ast.unparse
    match node:
        case ast.BinOp(left, op, right) if type(op) in SWAPS:
            yield "operator", text(ast.BinOp(left, SWAPS[type(op)](), right))
        case ast.BoolOp(op, values):
            yield "condition", text(ast.BoolOp(SWAPS[type(op)](), values))
        case ast.Compare(left, [op], right) if type(op) in OPPOSITES:
            yield "boundary", text(ast.Compare(left, [SWAPS[type(op)]()], right))
            yield "condition", text(ast.Compare(left, [OPPOSITES[type(op)]()], right))
        case ast.Compare(left, [op], right) if type(op) in SWAPS:
            yield "condition", text(ast.Compare(left, [SWAPS[type(op)]()], right))
        case ast.UnaryOp(ast.Not() | ast.Invert() | ast.USub(), operand):
            yield "sign", text(operand)
        case ast.Constant(bool(value)):
            yield "constant", str(not value)
        case ast.Constant(int(value) | float(value)):
            yield "constant", str(value + 1)
        case ast.Call(ast.Name("product"), [left, right]):
            yield "precision", f"jnp.matmul({text(left)}, {text(right)})"
        case ast.Attribute(value, "HIGHEST"):
            yield "precision", text(ast.Attribute(value, "DEFAULT"))
        case ast.Call(ast.Attribute(_, "where"), [_, kept, _]):
            yield "mask", text(kept)
        case ast.Call(ast.Attribute(_, name) | ast.Name(name), [value], []) if (
            name in DROPPED
        ):
            yield "call", text(value)
        case ast.Call(ast.Attribute(value, "conj"), [], []):
            yield "call", text(value)
        case ast.Attribute(value, name) if name in NAMES:
            yield "name", text(ast.Attribute(value, NAMES[name]))


def expressions(node):
    """Every node below one, without those that say something to people only."""
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not isinstance(
                child, ast.Raise | ast.JoinedStr | ast.MatchValue
            ):
                yield child
                yield from expressions(child)


def mutations_of(path):
    """Every fault of a file."""
    source = (ROOT / path).read_bytes()
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    tree = ast.parse(source)
    tree.body = [own for own in tree.body if not isinstance(own, ast.Assign)]
    for node in expressions(tree):
        for kind, after in alternatives(node):
            start = starts[node.lineno - 1] + node.col_offset
            stop = starts[node.end_lineno - 1] + node.end_col_offset
            before = ast.unparse(node)
            yield Mutation(path, node.lineno, kind, start, stop, before, f"({after})")


def sampled(paths, places, count, seed):
    """Faults spread over the files, and in each over the kinds."""
    generator = random.Random(seed)
    by_file = []
    for path in paths:
        own = [
            mutation
            for mutation in mutations_of(path)
            if not places
            or any(
                path.startswith(place) or f"{path}:{mutation.line}" == place
                for place in places
            )
        ]
        generator.shuffle(own)
        by_file.append(own)
    chosen, used = [], collections.Counter()
    while len(chosen) < count and any(by_file):
        for own in filter(None, by_file):
            mutation = min(own, key=lambda mutation: used[mutation.kind])
            own.remove(mutation)
            used[mutation.kind] += 1
            chosen.append(mutation)
    return chosen[:count]


def tests_of(mutation):
    """Test files; on CPUs no others see how precise a product is asked to be."""
    if mutation.kind == "precision":
        return ["tests/test_precision.py"]
    name = pathlib.Path(mutation.path).stem.lstrip("_")
    own = [
        str(path.relative_to(ROOT)) for path in ROOT.glob(f"tests/**/test_{name}.py")
    ]
    names = next(own for start, own in TESTS.items() if mutation.path.startswith(start))
    return list(dict.fromkeys(own + [f"tests/{name}.py" for name in names.split()]))


def failure(tree, tests):
    """The first of these tests that fails in a tree, or None where all pass."""
    cache = pathlib.Path(sys.prefix) / "mutations-cache"
    settings = {
        "OPENBLAS_NUM_THREADS": "1",
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
        # What a fault leaves as it was is not compiled again.
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.05",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
        + ["-o", "faulthandler_timeout=120", "-o", "faulthandler_exit_on_timeout=true"]
        + tests,
        cwd=tree,
        env={**settings, **os.environ, "PYTHONPATH": str(tree)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate()
    finally:
        # Processes that a test has started, if it was cut short.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    if process.returncode > 2:
        raise SystemExit(f"pytest ended with {process.returncode}:\n{output[-3000:]}")
    if process.returncode == 0:
        return None
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", output, re.MULTILINE)
    return failed[1] if failed else "the time limit, or a crash"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("places", nargs="*")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=120)
    parser.add_argument("--skip", type=int, default=0)
    arguments = parser.parse_args()
    paths = sorted(
        {
            str(path.relative_to(ROOT))
            for start in TESTS
            for path in [ROOT / start, *(ROOT / start).glob("*.py")]
            if path.is_file() and path.name != "__init__.py"
        }
    )
    chosen = sampled(paths, arguments.places, arguments.count, arguments.seed)
    chosen = chosen[arguments.skip :]
    survivors = []
    with tempfile.TemporaryDirectory() as folder:
        tree = pathlib.Path(folder)
        for name in ("jaxwgc", "tests"):
            shutil.copytree(
                ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__")
            )
        shutil.copy2(ROOT / "pyproject.toml", tree)
        every_test = dict.fromkeys(
            test for mutation in chosen for test in tests_of(mutation)
        )
        if failed := failure(tree, list(every_test)):
            raise SystemExit(f"{failed} fails without any fault")
        for number, mutation in enumerate(chosen, 1):
            # From the copy: the tree may be edited in the meantime.
            source = (tree / mutation.path).read_bytes()
            changed = source[: mutation.start] + mutation.after.encode()
            (tree / mutation.path).write_bytes(changed + source[mutation.stop :])
            failed = failure(tree, tests_of(mutation))
            (tree / mutation.path).write_bytes(source)
            outcome = f"by {failed}" if failed else "SURVIVED"
            print(f"{number}/{len(chosen)} {mutation}  {outcome}", flush=True)
            survivors += [] if failed else [mutation]
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} caught")
    for mutation in survivors:
        print(mutation)


if __name__ == "__main__":
    main()
