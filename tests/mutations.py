"""Puts small faults into the core, one at a time, and prints those that tests miss.

    make mutations                         120 faults, an hour or two
    make mutations COUNT=20 SEED=1         others
    make mutations WHERE=jaxwgc/decoders   in some folders, files or lines

Works in copies of the tree. Prints a line per fault: the line of code, what it became,
and the first test that failed or SURVIVED. A test that takes longer than two minutes
counts as failed. Module-level constants, annotations, decorators and messages of errors
have no faults.
"""

import ast
import contextlib
import pathlib
import random
import re
import subprocess
import sys
import tempfile

ROOMS = """aggregate coding decoders codes parts planning reports simulation sketching
    stragglers traces""".split()
# Tests run in this order: those of the same name, of the same room, of all rooms.
TESTS = """**/test{name}.py {room}/test_*.py test_{room}.py catalogue/test_*.py
    distributed/test_mesh.py coding/test_*.py test_precision.py
    aggregate/test_aggregate_checks.py test_dtypes.py test_gradients.py
    **/test_combined_codes.py **/test_waiting_arguments.py"""
# What the tests import or read.
COPIED = "jaxwgc tests experiments docs README.md pyproject.toml"
PYTEST = """-m pytest -qx -o faulthandler_timeout=120
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
        statement for statement in tree.body if not isinstance(statement, ast.Assign)
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


def run_tests(path, source, *flags):
    """Runs the tests of a file with another source, in a copy of the tree.

    Returns:
      Whether all tests pass, and what pytest has printed.
    """
    patterns = TESTS.format(name=path.stem, room=path.parts[1]).split()
    files = [sorted(pathlib.Path("tests").glob(pattern)) for pattern in patterns]
    with tempfile.TemporaryDirectory() as tree:
        subprocess.run(["cp", "-rp", *COPIED.split(), tree], check=True)
        pathlib.Path(tree, path).write_text(source)
        command = [sys.executable, *PYTEST.split(), *flags]
        command += dict.fromkeys(sum(files, []))
        done = subprocess.run(command, cwd=tree, capture_output=True, text=True)
    return done.returncode == 0, done.stdout


def failure(path, changed):
    """Returns the first test that fails if the source of a file is changed, or None."""
    passes, printed = run_tests(path, changed)
    if passes:
        return None
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", printed, re.MULTILINE)
    return failed[1] if failed else "the time limit, or a crash"


def check_collection(paths):
    """Raises an error if pytest cannot import tests from a copy of the tree."""
    first_of_rooms = {path.parts[1]: path for path in reversed(paths)}
    for path in first_of_rooms.values():
        passes, printed = run_tests(path, path.read_text(), "--collect-only")
        if not passes:
            raise RuntimeError(f"the tests of {path} fail without a fault: {printed}")


def main(count, seed, *places):
    """Prints the outcome of each fault, and how many were caught."""
    core = pathlib.Path("jaxwgc")
    paths = sorted(path for room in ROOMS for path in (core / room).rglob("*.py"))
    check_collection(paths)
    faults = [fault for path in paths for fault in faults_of(path)]
    faults = [fault for fault in faults if fault[0].startswith(places or "jaxwgc")]
    chosen = random.Random(int(seed)).sample(faults, min(int(count), len(faults)))
    caught = 0
    for number, (name, path, changed) in enumerate(chosen, 1):
        failed = failure(path, changed)
        caught += failed is not None
        outcome = f"by {failed}" if failed else "SURVIVED"
        print(f"{number}/{len(chosen)} {name}  {outcome}", flush=True)
    print(f"{caught} of {len(chosen)} caught")


if __name__ == "__main__":
    main(*sys.argv[1:])
