"""Runs the numerical tests on other processors, BLAS kernels, JAX versions and seeds.

python -m tests.variants [--lowest PYTHON] [NAME …]
"""

import argparse
import os
import re
import subprocess
import sys

TESTS = (
    "tests/sketching",
    "tests/parts",
    "tests/decoders",
    "tests/codes",
    "tests/coding/test_coding.py",
    "tests/coding/test_locate_errors.py",
    "tests/coding/test_majority.py",
    "tests/coding/test_projection.py",
    "tests/test_precision.py",
    "tests/test_dtypes.py",
    "tests/test_zeros.py",
    "tests/stragglers/test_fit.py",
)
PRODUCT = "import numpy; numpy.linalg.svd(numpy.ones((99, 99)) @ numpy.ones((99, 99)))"
UNOPTIMISED = "--xla_backend_optimization_level=0"
VARIANTS = {
    f"{isa}{suffix}": {"XLA_FLAGS": f"--xla_cpu_max_isa={isa} {flags}"}
    for isa in ("SSE4_2", "AVX", "AVX2", "AVX512")
    for suffix, flags in ((", unoptimised", UNOPTIMISED), (", optimized", ""))
} | {
    # Kernels for a small cache crash if they find a large one.
    f"{core}, {threads} BLAS threads": {
        "OPENBLAS_CORETYPE": core,
        "OPENBLAS_NUM_THREADS": threads,
        "OPENBLAS_L2_SIZE": "512",
    }
    for core in ("Prescott", "Haswell", "Zen", "SkylakeX")
    for threads in "12"
}
OPTIONS = {"seeds shifted by one": ["--shift-seeds=1"], "lowest versions": []}


def run(name: str, python: str, flags: list[str]) -> tuple[int, list[str]]:
    """Runs the tests in one variant; returns how many passed, and names of others."""
    common = {"XLA_FLAGS": UNOPTIMISED, "OPENBLAS_NUM_THREADS": "1"}
    env = os.environ | common | VARIANTS.get(name, {})
    if subprocess.run([python, "-c", PRODUCT], env=env).returncode:
        return 0, ["this processor lacks its instructions"]
    done = subprocess.run(
        [python, "-m", "pytest", "-q", "-rfE", "--tb=short", *flags]
        + [*OPTIONS.get(name, []), *TESTS],
        env=env,
        stdout=subprocess.PIPE,
        text=True,
    )
    passed = re.search(r"(\d+) passed", done.stdout)
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    if done.returncode:
        print(done.stdout[-20_000:])
    return int(passed[1]) if passed else 0, failed or ["no tests"] * (not passed)


def main() -> None:
    """Prints a row per variant; the exit status is 1 if a test failed in one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", default=[])
    parser.add_argument("--lowest", metavar="PYTHON")
    parser.add_argument("--flags", default="-n auto --dist loadgroup")
    arguments = parser.parse_args()
    failures = 0
    for name in arguments.names or (*VARIANTS, *OPTIONS):
        python = arguments.lowest if name == "lowest versions" else sys.executable
        if python is None:
            continue
        passed, failed = run(name, python, arguments.flags.split())
        failures += len(failed)
        print(f"{name:26} {passed:5} passed, {len(failed)} failed", *failed, flush=True)
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
