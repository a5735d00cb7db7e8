"""Puts small faults into the library, one at a time, and prints those that tests miss.

    make mutations                         120 faults, an hour or so
    make mutations COUNT=20 SEED=1         others
    make mutations WHERE=jaxwgc/decoders   in some folders, files or lines
    make mutations FAULTS=tests/mutants.txt   those of an earlier run

Works in copies of the tree. First runs each file of tests once, and notes which
functions it executes; that takes as long as all tests, and is kept beside the
environment. A fault is then tried on the files that execute its function, the fastest
first, but on no more than take `--seconds` together without a fault. With FAULTS, the
file that caught a fault earlier is first. Prints a line per fault: the line of code,
what it became, and the first test that failed or SURVIVED. A test that takes longer
than two minutes counts as failed. Module-level constants, annotations, decorators and
messages of errors have no faults. Only tests of every day are run, but those of real
processes, of experiments and of pages.
"""

import argparse
import ast
import concurrent.futures
import functools
import itertools
import json
import os
import pathlib
import random
import re
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

# Start processes, run experiments, or read pages: minutes each.
SKIPPED = """**/test_ray*.py **/test_several_machines.py experiments/*.py
    **/test_cluster_experiment.py test_documentation.py test_public_api.py
    test_profiles.py test_devices.py test_layers.py"""
# What the tests import or read.
COPIED = "jaxwgc tests experiments docs README.md pyproject.toml"
PYTEST = [
    *"""-m pytest -qx -p no:cacheprovider -o faulthandler_timeout=120
    -o faulthandler_exit_on_timeout=true -m""".split(),
    "not weekly",
]
# Exit codes of pytest if all tests pass, or none is of every day.
PASSED = 0, 5
# What is replaced, as a regular expression, and by what.
SWAPS = """+ -, - +, * /, / *, ** *, // *, % //, & |, | &, << >>, and or, or and,
    == !=, != ==, < >, <= >, > <, >= <, < <=, <= <, > >=, >= >, is is not, in not in"""
FAULTS = {
    rf" {re.escape(old)} (?!not )": f" {new} "
    for old, new in (swap.split(maxsplit=1) for swap in SWAPS.split(","))
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


def reduced(source):
    """Returns what a program does without the places that have no faults."""
    tree = ast.parse(source)
    tree.body = [
        statement
        for statement in tree.body
        if not isinstance(statement, ast.Assign | ast.AnnAssign)
    ]
    for node in ast.walk(tree):
        vars(node).update(annotation=None, returns=None, decorator_list=None, exc=None)
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node.value = ""
    return ast.dump(tree)


class Place(NamedTuple):
    """A place of the library that may get a fault."""

    path: pathlib.Path
    line: int
    source: str
    changed: str

    def __str__(self):
        old = self.source.splitlines()[self.line - 1].strip()
        new = self.changed.splitlines()[self.line - 1].strip()
        return f"{self.path}:{self.line}: {old}  ->  {new}"

    def is_fault(self):
        """Returns whether the changed program does something else."""
        try:
            return reduced(self.changed) != reduced(self.source)
        except SyntaxError:
            return False


def places_of(path):
    """Yields the places of a file that may get a fault."""
    source = path.read_text()
    for pattern, new in FAULTS.items():
        for hit in re.finditer(pattern, source):
            line = source.count("\n", 0, hit.start()) + 1
            after = new if isinstance(new, str) else new(hit)
            changed = source[: hit.start()] + after + source[hit.end() :]
            yield Place(path, line, source, changed)


def drawn(places, count, seed):
    """Returns random places that are faults."""
    random.Random(seed).shuffle(places)
    return [*itertools.islice(filter(Place.is_fault, places), count)]


def all_tests():
    """Returns the files of tests that are run."""
    tests = pathlib.Path("tests")
    skipped = {file for pattern in SKIPPED.split() for file in tests.glob(pattern)}
    return sorted(set(tests.rglob("test_*.py")) - skipped)


def execute(test, kept):
    """Runs a file of tests, and notes in a folder which functions it executes."""
    noted = kept / f"{'.'.join(test.with_suffix('').parts)}.json"
    if not noted.exists():
        flags = ["-p", "tests.executed", "--executed", noted, test]
        done = subprocess.run([sys.executable, *PYTEST, *flags])
        if done.returncode not in PASSED:
            raise SystemExit(f"{test} fails without a fault")
    return test, json.loads(noted.read_text())


def executed_by(kept):
    """Returns for each file of tests its seconds, and the functions it executes."""
    kept.mkdir(parents=True, exist_ok=True)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(pool.map(functools.partial(execute, kept=kept), all_tests()))


def function_at(source, line):
    """Returns the qualified name of the function with a line; None outside of all."""

    def search(node, prefix):
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, ast.FunctionDef | ast.ClassDef):
                inner = search(child, prefix)
            elif child.lineno <= line <= child.end_lineno:
                own = f"{prefix}{child.name}"
                is_class = isinstance(child, ast.ClassDef)
                inner = search(child, f"{own}." if is_class else f"{own}.<locals>.")
                inner = inner or (None if is_class else own)
            else:
                continue
            if inner:
                return inner
        return None

    return search(ast.parse(source), "")


def tests_of(fault, runs, seconds):
    """Returns the files of tests that execute the function of a fault, in order."""
    path = fault.path
    function = function_at(fault.source, fault.line)

    def is_executed(run):
        if function:
            return f"{path}:{function}" in run["functions"]
        # The body of a class counts for all that it defines.
        inside = (name.removeprefix(f"{path}:") for name in run["functions"])
        return any(name != "<module>" and "/" not in name for name in inside)

    own = f"test{path.stem}" if path.stem.startswith("_") else f"test_{path.stem}"
    found = {test: run["seconds"] for test, run in runs.items() if is_executed(run)}
    chosen = []
    for test in sorted(found, key=lambda test: (test.stem != own, found[test])):
        if not chosen or found[test] <= seconds:
            chosen.append(test)
            seconds -= found[test]
    return chosen


def run_tests(tree, path, source, tests):
    """Runs tests with another source of a file, in a copy of the tree.

    Returns:
      Whether all tests pass, and what pytest has printed.
    """
    target = pathlib.Path(tree, path)
    kept = target.read_text()
    command = [sys.executable, *PYTEST, *tests]
    try:
        target.write_text(source)
        done = subprocess.run(command, cwd=tree, capture_output=True, text=True)
    finally:
        target.write_text(kept)
    return done.returncode in PASSED, done.stdout


def outcome(tree, fault, tests):
    """Returns the first test that fails because of a fault, in words."""
    if not tests:
        return "SURVIVED, no test executes it"
    passes, printed = run_tests(tree, fault.path, fault.changed, tests)
    if passes:
        return "SURVIVED"
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", printed, re.MULTILINE)
    return f"by {failed[1] if failed else 'the time limit, or a crash'}"


def change_of(name):
    """Returns file and change of a fault, without the number of its line."""
    place, _, change = name.partition(": ")
    return place.partition(":")[0], change.partition("  by ")[0].partition("  SURV")[0]


def earlier(places, report):
    """Returns the faults of an earlier run, wherever their lines are now.

    Beside each is the file of tests that caught it, or None.
    """
    lines = re.findall(r"^\d+/\d+ (jaxwgc/.*)", report.read_text(), re.MULTILINE)
    wanted = {}
    for line in lines:
        caught_by = re.search(r"  by (tests/[\w/]+\.py)", line)
        wanted[change_of(line)] = caught_by and pathlib.Path(caught_by[1])
    changes = ((change_of(str(place)), place) for place in places)
    found = {change: place for change, place in changes if change in wanted}
    for path, change in sorted(wanted.keys() - found.keys()):
        print(f"GONE {path}: {change}")
    return [(found[change], wanted[change]) for change in sorted(found)]


def arguments():
    """Returns the parsed arguments of the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("count", type=int)
    parser.add_argument("seed", type=int)
    parser.add_argument("places", nargs="*", default=["jaxwgc"])
    parser.add_argument("--faults", type=pathlib.Path)
    parser.add_argument("--seconds", type=float, default=90.0)
    parser.add_argument("--kept", type=pathlib.Path, required=True)
    return parser.parse_args()


def main():
    """Prints the outcome of each fault, and how many were caught."""
    options = arguments()
    runs = executed_by(options.kept)
    files = tuple(place.partition(":")[0] for place in options.places)
    paths = sorted(pathlib.Path("jaxwgc").rglob("*.py"))
    paths = [path for path in paths if str(path).startswith(files)]
    places = [place for path in paths for place in places_of(path)]
    places = [place for place in places if str(place).startswith(tuple(options.places))]
    if options.faults:
        chosen = earlier(places, options.faults)
    else:
        count = options.count
        chosen = [(fault, None) for fault in drawn(places, count, options.seed)]
    caught = 0
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as tree:
        subprocess.run(["cp", "-rp", *COPIED.split(), tree], check=True)
        for number, (fault, caught_by) in enumerate(chosen, 1):
            tests = tests_of(fault, runs, options.seconds)
            if caught_by and caught_by.exists():
                tests = [caught_by, *(test for test in tests if test != caught_by)]
            result = outcome(tree, fault, tests)
            caught += result.startswith("by")
            print(f"{number}/{len(chosen)} {fault}  {result}", flush=True)
    seconds = (time.monotonic() - start) / max(len(chosen), 1)
    print(f"{caught} of {len(chosen)} caught, {seconds:.0f} s a fault")


if __name__ == "__main__":
    main()
