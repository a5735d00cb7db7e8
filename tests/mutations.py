"""Puts small faults into the core, one at a time: do tests fail? Too long for CI.

    python -m tests.mutations                       120 faults, an hour or two
    python -m tests.mutations --seed 1 --count 20   others
    python -m tests.mutations jaxwgc/decoders       in some folders, files or lines

Works in a copy of the tree. Prints a line per fault: the line of code, what it became,
and the first test that failed or SURVIVED. A test that takes longer than two minutes
counts as failed. Module-level constants (sizes of batches, limits of searches),
annotations, decorators and messages of errors have no faults.
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
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).parents[1]
# Files with faults, and their tests after those of the same name, likely ones first.
TESTS = {
    "_arrays.py": "decoders/test_least_squares test_dtypes "
    "sketching/test_least_squares",
    "aggregate/*.py": "aggregate/test_* test_refusals test_aggregate_checks",
    "coding/*.py": "test_coding test_dtypes test_every_path test_gradients "
    "codes/test_polynomial_codes codes/test_repetition codes/test_combined_codes "
    "test_devices test_precision",
    "decoders/*.py": "decoders/test_* test_coding test_every_path test_devices "
    "codes/test_polynomial_codes codes/test_any_placement codes/test_repetition "
    "test_refusals",
    "codes/_placements.py": "codes/test_any_placement test_refusals",
    "codes/_worst_rounding.py": "codes/test_any_placement",
    "studies/_[dmrw]*.py": "studies/test_diagnosis studies/test_worst_pattern "
    "test_studies",
    "stragglers/*.py": "stragglers/test_* test_aggregate_checks test_devices "
    "test_refusals",
    "sketching/_samplers/*.py": "sketching/test_row_sampling sketching/test_sampling "
    "sketching/test_partition",
}
# What stands between spaces, by kind of fault, and what it becomes.
SWAPS = {
    "operator": "+ → -, - → +, * → /, / → *, // → *, % → //, & → |, | → &, << → >>",
    "condition": "and → or, or → and, is not → is, is → is not, not in → in, "
    "in → not in, == → !=, != → ==, < → >, <= → >, > → <, >= → <",
    "boundary": "< → <=, <= → <, > → >=, >= → >",
}
# Regular expressions, by kind of fault, and what a match becomes.
PATTERNS = {
    "operator": {r"(?<=[\w)\]]) ?\*\* ?": " * "},
    "sign": {r"\bnot (?!in)": "", "~": "", r"(?<=[(\[, ])-(?=\w)": ""},
    "constant": {
        r"\bTrue\b": "False",
        r"\bFalse\b": "True",
        r"(?<![\w.])\d+(\.\d+)?(e-?\d+)?(?![\w.])": lambda hit: f"{eval(hit[0]) + 1}",
    },
    "precision": {r"\bproduct\(": "jnp.matmul(", r"\bHIGHEST\b": "DEFAULT"},
    "mask": {r"\w+\.where\(": "(lambda mask, kept, other: kept)("},
    "call": {
        r"[\w.]*\b(stop_gradient|abs|sqrt|ceil|expm1|log1p)\(": "(",
        r"\.conj\(\)": "",
    },
    "name": {
        rf"\b{old}\b(?!=)": new
        for pair in ("max min", "maximum minimum", "any all", "ceil floor")
        for old, new in (pair.split(), pair.split()[::-1])
    },
}
for kind, swaps in SWAPS.items():
    for old, new in (swap.split(" → ") for swap in swaps.split(", ")):
        pattern = rf" {re.escape(old)} (?!not )"
        PATTERNS.setdefault(kind, {})[pattern] = f" {new} "
# As `make test`; what a fault leaves as it was is not compiled again.
SETTINGS = {
    "OPENBLAS_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_backend_optimization_level=0",
    "JAX_COMPILATION_CACHE_DIR": str(pathlib.Path(sys.prefix) / "mutations-cache"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.05",
}
Fault = collections.namedtuple("Fault", "path kind name changed")


def reduced(source):
    """Returns what a program does without the places that have no faults."""
    tree = ast.parse(source)
    tree.body = [each for each in tree.body if not isinstance(each, ast.Assign)]
    for node in ast.walk(tree):
        for name in ("annotation", "returns", "decorator_list", "exc"):
            if hasattr(node, name):
                setattr(node, name, None)
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node.value = ""
    return ast.dump(tree)


def faults_of(path, generator):
    """Yields the faults of a file, in random order."""
    source = (ROOT / path).read_text()
    expected = reduced(source)
    places = [
        (hit, kind, after)
        for kind, table in PATTERNS.items()
        for before, after in table.items()
        for hit in re.finditer(before, source)
    ]
    generator.shuffle(places)
    for hit, kind, after in places:
        after = after if isinstance(after, str) else after(hit)
        changed = source[: hit.start()] + after + source[hit.end() :]
        with contextlib.suppress(SyntaxError):
            if reduced(changed) != expected:
                line = source.count("\n", 0, hit.start() + 1)
                texts = (own.splitlines()[line].strip() for own in (source, changed))
                name = f"{path}:{line + 1} ({kind}): {'  ->  '.join(texts)}"
                yield Fault(path, kind, name, changed)


def sampled(places, count, seed):
    """Returns faults spread over the files, and in each over the kinds."""
    generator, used, chosen = random.Random(seed), collections.Counter(), []
    files = {path for pattern in TESTS for path in ROOT.glob(f"jaxwgc/{pattern}")}
    paths = sorted(str(path.relative_to(ROOT)) for path in files)
    every = [[*faults_of(path, generator)] for path in paths]
    left = [[own for own in each if own.name.startswith(places)] for each in every]
    while len(chosen) < count and (left := [faults for faults in left if faults]):
        for faults in left:
            chosen.append(min(faults, key=lambda fault: used[fault.kind]))
            faults.remove(chosen[-1])
            used[chosen[-1].kind] += 1
    return chosen[:count]


def tests_of(fault):
    """Returns test files; on CPUs no others see the precision of a product."""
    if fault.kind == "precision":
        return ["tests/test_precision.py"]
    path = pathlib.PurePath(fault.path)
    names = next(TESTS[own] for own in TESTS if path.match(f"jaxwgc/{own}"))
    names = f"**/test{path.stem}", *names.split()
    found = [own for name in names for own in sorted(ROOT.glob(f"tests/{name}.py"))]
    return [str(own.relative_to(ROOT)) for own in dict.fromkeys(found)]


def failure(tree, tests):
    """Returns the first of these tests that fails in a tree, or None."""
    options = "faulthandler_timeout=120", "faulthandler_exit_on_timeout=true"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-qx", *tests]
        + [f"--override-ini={option}" for option in options],
        cwd=tree,
        env={**SETTINGS, **os.environ, "PYTHONPATH": str(tree)},
        capture_output=True,
        text=True,
    )
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    outcome = failed[1] if failed else "the time limit, or a crash"
    return outcome if done.returncode else None


def main():
    """Prints the outcome of each fault, and how many were caught."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("places", nargs="*", default=["jaxwgc"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=120)
    given = parser.parse_args()
    chosen, caught = sampled(tuple(given.places), given.count, given.seed), 0
    with tempfile.TemporaryDirectory() as folder:
        tree = pathlib.Path(folder)
        for name in ("jaxwgc", "tests"):
            shutil.copytree(ROOT / name, tree / name)
        shutil.copy2(ROOT / "pyproject.toml", tree)
        tests = dict.fromkeys(test for fault in chosen for test in tests_of(fault))
        if failed := failure(tree, tests):
            raise SystemExit(f"{failed} fails without any fault")
        for number, fault in enumerate(chosen, 1):
            source = (tree / fault.path).read_text()
            (tree / fault.path).write_text(fault.changed)
            failed = failure(tree, tests_of(fault))
            (tree / fault.path).write_text(source)
            caught += failed is not None
            outcome = f"by {failed}" if failed else "SURVIVED"
            print(f"{number}/{len(chosen)} {fault.name}  {outcome}", flush=True)
    print(f"{caught} of {len(chosen)} caught")


if __name__ == "__main__":
    main()
