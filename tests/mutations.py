"""Puts small faults into the core, one at a time: do tests fail? Too long for CI.

    python -m tests.mutations                       120 faults, an hour or two
    python -m tests.mutations --seed 1 --count 20   others
    python -m tests.mutations jaxwgc/decoders       in some folders, files or lines

Works in a copy of the tree. Prints a line per fault: the line of code, what it became,
and the first test that failed or SURVIVED. A test that takes longer than two minutes
counts as failed. Module-level constants, annotations, decorators and messages of errors
have no faults.
"""

import argparse
import ast
import os
import pathlib
import random
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).parents[1]
ROOMS = "aggregate coding decoders codes stragglers studies sketching".split()
# Tests of all rooms, which come after those of the same name and folder.
SHARED = """coding every_path locate_errors arbitration noisy_messages aggregate_checks
    dtypes gradients precision refusals"""
# What is replaced, as a regular expression, and by what.
SWAPS = """+ -, - +, * /, / *, ** *, // *, % //, & |, | &, << >>, and or, or and,
    == !=, != ==, < >, <= >, > <, >= <, < <=, <= <, > >=, >= >, is is not, in not in"""
FAULTS = {
    rf" {re.escape(old)} (?!not )": f" {new} "
    for old, new in (each.split(maxsplit=1) for each in SWAPS.split(","))
} | {
    r"\bnot |~": "",
    r"(?<=[(\[, ])-(?=\w)|\.conj\(\)": "",
    r"\bTrue\b": "False",
    r"\bFalse\b": "True",
    r"(?<![\w.])\d+(?![\w.])": lambda hit: f"{int(hit[0]) + 1}",
    r"\bproduct\(": "jnp.matmul(",
    r"\w+\.where\(": "(lambda mask, kept, other: kept)(",
    r"[\w.]*\b(stop_gradient|abs|sqrt|ceil|expm1|log1p)\(": "(",
    r"\b(max|min)(?=imum\(|\()": lambda hit: {"max": "min", "min": "max"}[hit[0]],
    r"\b(any|all)(?=\()": lambda hit: {"any": "all", "all": "any"}[hit[0]],
}
# As `make test`; what a fault leaves as it was is not compiled again.
SETTINGS = {
    "OPENBLAS_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_backend_optimization_level=0",
    "JAX_COMPILATION_CACHE_DIR": str(pathlib.Path(sys.prefix) / "mutations-cache"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.05",
}


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


def faults_of(path):
    """Yields the name of each fault of a file, and the source that has it."""
    source = (ROOT / path).read_text()
    expected = reduced(source)
    for pattern, new in FAULTS.items():
        for hit in re.finditer(pattern, source):
            after = new if isinstance(new, str) else new(hit)
            changed = source[: hit.start()] + after + source[hit.end() :]
            try:
                is_seen = reduced(changed) != expected
            except SyntaxError:
                continue
            if is_seen:
                line = source.count("\n", 0, hit.start() + 1)
                texts = (own.splitlines()[line].strip() for own in (source, changed))
                yield f"{path}:{line + 1}: {'  ->  '.join(texts)}", path, changed


def failure(tree, path):
    """Returns the first test of a file's room that fails in a tree, or None."""
    room = path.relative_to("jaxwgc").parts[0]
    names = f"**/test{path.stem}.py", f"{room}/test_*.py"
    names += tuple(f"test_{name}.py" for name in SHARED.split())
    tests = [own for name in names for own in sorted((tree / "tests").glob(name))]
    options = "faulthandler_timeout=120", "faulthandler_exit_on_timeout=true"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-qx", *dict.fromkeys(map(str, tests))]
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
    files = (own for room in ROOMS for own in (ROOT / "jaxwgc" / room).rglob("*.py"))
    paths = sorted(own.relative_to(ROOT) for own in files)
    faults = [fault for path in paths for fault in faults_of(path)]
    faults = [fault for fault in faults if fault[0].startswith(tuple(given.places))]
    chosen = random.Random(given.seed).sample(faults, min(given.count, len(faults)))
    caught = 0
    with tempfile.TemporaryDirectory() as folder:
        tree = pathlib.Path(folder)
        for name in ("jaxwgc", "tests"):
            shutil.copytree(ROOT / name, tree / name)
        shutil.copy2(ROOT / "pyproject.toml", tree)
        for number, (name, path, changed) in enumerate(chosen, 1):
            (tree / path).write_text(changed)
            failed = failure(tree, path)
            shutil.copy2(ROOT / path, tree / path)
            caught += failed is not None
            outcome = f"by {failed}" if failed else "SURVIVED"
            print(f"{number}/{len(chosen)} {name}  {outcome}", flush=True)
    print(f"{caught} of {len(chosen)} caught")


if __name__ == "__main__":
    main()
