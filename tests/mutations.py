"""Puts small faults into the library, one at a time, and prints those that tests miss.

    make mutations                         120 faults, an hour or so
    make mutations COUNT=20 SEED=1         others
    make mutations WHERE=jaxwgc/decoders   in some folders, files or lines
    make mutations FAULTS=tests/mutants.txt   those of an earlier run

Works in copies of the tree. First runs each file of tests once, and notes which
functions it executes; that takes as long as all tests, and is kept beside the
environment. A fault is then tried on the files that execute its function, the fastest
first, but on no more than take `--seconds` together without a fault. Prints a line per
fault: the line of code, what it became, and the first test that failed or SURVIVED. A
test that takes longer than two minutes counts as failed. Module-level constants,
annotations, decorators and messages of errors have no faults. Tests of real processes,
of experiments and of pages are not run.
"""

import argparse
import ast
import concurrent.futures
import contextlib
import functools
import json
import os
import pathlib
import random
import re
import subprocess
import sys
import tempfile
import time

# Start processes, run experiments, or read pages: minutes each.
SKIPPED = """**/test_ray*.py **/test_several_machines.py experiments/*.py
    **/test_cluster_experiment.py test_documentation.py test_public_api.py
    test_profiles.py test_devices.py test_layers.py"""
# What the tests import or read.
COPIED = "jaxwgc tests experiments docs README.md pyproject.toml"
PYTEST = """-m pytest -qx -p no:cacheprovider -o faulthandler_timeout=120
    -o faulthandler_exit_on_timeout=true"""
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


def faults_of(path):
    """Yields name, file and changed source of each fault of a file."""
    source = path.read_text()
    expected = reduced(source)
    for pattern, new in FAULTS.items():
        for hit in re.finditer(pattern, source):
            after = new if isinstance(new, str) else new(hit)
            changed = source[: hit.start()] + after + source[hit.end() :]
            with contextlib.suppress(SyntaxError):
                if reduced(changed) != expected:
                    line = source.count("\n", 0, hit.start())
                    lines = (text.splitlines()[line] for text in (source, changed))
                    name = "  ->  ".join(map(str.strip, lines))
                    yield f"{path}:{line + 1}: {name}", path, changed


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
        subprocess.run([sys.executable, *PYTEST.split(), *flags], check=True)
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
    name, path, changed = fault
    line = int(name.split(":")[1])
    function = function_at(path.read_text(), line)

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
    command = [sys.executable, *PYTEST.split(), *tests]
    try:
        target.write_text(source)
        done = subprocess.run(command, cwd=tree, capture_output=True, text=True)
    finally:
        target.write_text(kept)
    return done.returncode == 0, done.stdout


def outcome(tree, fault, tests):
    """Returns the first test that fails because of a fault, in words."""
    _, path, changed = fault
    if not tests:
        return "SURVIVED, no test executes it"
    passes, printed = run_tests(tree, path, changed, tests)
    if passes:
        return "SURVIVED"
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", printed, re.MULTILINE)
    return f"by {failed[1] if failed else 'the time limit, or a crash'}"


def change_of(name):
    """Returns file and change of a fault, without the number of its line."""
    place, _, change = name.partition(": ")
    return place.partition(":")[0], change.partition("  by ")[0].partition("  SURV")[0]


def earlier(faults, report):
    """Returns the faults of an earlier run, wherever their lines are now."""
    lines = re.findall(r"^\d+/\d+ (jaxwgc/.*)", report.read_text(), re.MULTILINE)
    wanted = {change_of(line) for line in lines}
    found = {change_of(fault[0]): fault for fault in faults}
    for path, change in sorted(wanted - found.keys()):
        print(f"GONE {path}: {change}")
    return [found[change] for change in sorted(wanted & found.keys())]


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
    faults = [fault for path in paths for fault in faults_of(path)]
    faults = [fault for fault in faults if fault[0].startswith(tuple(options.places))]
    if options.faults:
        chosen = earlier(faults, options.faults)
    else:
        count = min(options.count, len(faults))
        chosen = random.Random(options.seed).sample(faults, count)
    caught = 0
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as tree:
        subprocess.run(["cp", "-rp", *COPIED.split(), tree], check=True)
        for number, fault in enumerate(chosen, 1):
            result = outcome(tree, fault, tests_of(fault, runs, options.seconds))
            caught += result.startswith("by")
            print(f"{number}/{len(chosen)} {fault[0]}  {result}", flush=True)
    seconds = (time.monotonic() - start) / max(len(chosen), 1)
    print(f"{caught} of {len(chosen)} caught, {seconds:.0f} s a fault")


if __name__ == "__main__":
    main()
