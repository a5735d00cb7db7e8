"""Fixtures and straggler patterns that the tests share."""

import gc
import itertools
import os
import pathlib
import subprocess
import sys

import jax
import jax.monitoring
import numpy as np
import pytest
from hypothesis import HealthCheck, settings

# `--hypothesis-profile=thorough` for a night. No verdict depends on seconds: a program
# compiles for longer than a deadline, and a busy machine draws examples slowly.
for profile, max_examples in {"default": 200, "thorough": 20_000}.items():
    settings.register_profile(
        profile,
        max_examples=max_examples,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
# Only newer versions of Hypothesis apply a profile of this name when it is registered.
settings.load_profile("default")

# Traced and compiled functions are millions of objects that stay. To look through them
# for garbage as often as Python does takes a tenth of the time.
gc.set_threshold(100_000, 20, 20)

# A process may have 65,530 memory mappings on Linux, and JAX needs about 13 for every
# compiled function that it keeps; beyond that, it can compile no more.
MAX_MAPPINGS = 50_000
NUM_TESTS_BETWEEN = 5
tests_to_come = itertools.count(1)


OPEN_THEIR_OWN_RAY = {
    "test_ray_arguments",
    "test_ray_callbacks",
    "test_ray_coordinators",
    "test_ray_examples",
    "test_ray_nodes",
    "test_ray_session",
}
# Their programs are compiled once, by one process.
USE_THE_SAME_PATHS = {"test_every_path", "test_sizes"}
# Parts of names of tests that take longest, the longest first.
LONGEST = (
    "/test_ray",
    "experiments/",
    "test_several_machines",
    "test_documentation",
    "sketching/",
    "test_public_api",
    "test_fit",
    "planning/",
)


def pytest_addoption(parser):
    """Adds an option for `make test-variants`."""
    parser.addoption("--shift-seeds", type=int, default=0)


def pytest_configure(config):
    """Shifts the seeds of all generators, before tests are imported."""
    shift = config.getoption("--shift-seeds")
    if not shift:
        return

    def shifted(make):
        def make_shifted(seed=None, **options):
            return make(seed + shift if isinstance(seed, int) else seed, **options)

        return make_shifted

    np.random.default_rng = shifted(np.random.default_rng)
    jax.random.key = shifted(jax.random.key)
    jax.random.PRNGKey = shifted(jax.random.PRNGKey)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers():
    """Returns one more than cores: tests of real workers wait most of the time."""
    has_affinity = hasattr(os, "sched_getaffinity")
    num_cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count()
    return num_cores + 1


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """One process runs all tests of a file, which share fixtures and compiled programs.

    Files that use one Ray are one group, those that open and close their own are
    another. Tests of experiments take long and share little; they go where there is
    room. (Groups by marks are names of tests, which pytest 9.2 lets no plugin change
    any more.) Groups start in the order of `pytest_collection_modifyitems`.
    """
    if config.getvalue("dist") != "loadgroup":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            path = pathlib.PurePath(nodeid.partition("::")[0])
            if path.stem.startswith("test_ray"):
                return "own Ray" if path.stem in OPEN_THEIR_OWN_RAY else "one Ray"
            if path.stem in USE_THE_SAME_PATHS:
                return "every path"
            return nodeid if path.parent.name == "experiments" else str(path)

    config.option.loadscopereorder = False
    return ByFile(config, log)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """Puts the tests that take longest first, so that no process is idle at the end."""

    def rank(item):
        name = item.nodeid
        return next((n for n, part in enumerate(LONGEST) if part in name), len(LONGEST))

    items.sort(key=rank)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Skips a test that XLA cannot compile, if it cannot convert float16 at all.

    It cannot for processors without F16C, as with `--xla_cpu_max_isa=SSE4_2`.
    """
    try:
        return (yield)
    except jax.errors.JaxRuntimeError as error:
        if "Failed to materialize symbols" not in str(error) or converts_float16():
            raise
        pytest.skip("XLA cannot convert float16 for this processor")


def converts_float16():
    """Returns whether XLA compiles a conversion of float16."""
    try:
        jax.jit(lambda half: half.astype(np.float32))(np.float16(1))
    except jax.errors.JaxRuntimeError:
        return False
    return True


def pytest_runtest_teardown(item, nextitem):
    """Lets go of compiled functions where there are too many."""
    mappings = pathlib.Path("/proc/self/maps")
    if next(tests_to_come) % NUM_TESTS_BETWEEN or not mappings.exists():
        return
    with mappings.open("rb") as lines:
        if sum(1 for _ in lines) > MAX_MAPPINGS:
            jax.clear_caches()
            gc.collect()


@pytest.fixture(params=[False, True], ids=["x64-off", "x64-on"])
def x64(request):
    """Runs a test with JAX's 64-bit mode off and on; gives the mode."""
    with jax.enable_x64(request.param):
        yield request.param


@pytest.fixture
def with_x64():
    """Runs a test with JAX's 64-bit mode on."""
    with jax.enable_x64(True):
        yield


COMPILED = "/jax/core/compile/backend_compile_duration"


@pytest.fixture(scope="session")
def every_compilation():
    """Seconds of each program that this process compiles or loads from a cache."""
    seconds = []
    # JAX keeps a listener as long as the process.
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, duration, **_: event == COMPILED and seconds.append(duration)
    )
    return seconds


@pytest.fixture
def compilations(every_compilation):
    """Seconds of each program since the test began, or since the last `clear()`."""
    every_compilation.clear()
    return every_compilation


@pytest.fixture(params=["key", "PRNGKey"])
def make_key(request):
    """Both kinds of PRNG keys."""
    return getattr(jax.random, request.param)


def weekly(*values):
    """A case of `parametrize` that is not run every day."""
    return pytest.param(*values, marks=pytest.mark.weekly)


def bools(rows):
    """A matrix, from its rows as words of zeros and ones."""
    return np.array([list(row) for row in rows.split()]) == "1"


def every_pattern(num_workers, num_stragglers):
    """All masks with at most that many stragglers, filled up to 2**n rows.

    Masks that do not count are replaced by the one where all respond, so that codes of
    one size share a compiled function.
    """
    masks = np.array(list(itertools.product([False, True], repeat=num_workers)))
    masks[masks.sum(1) < num_workers - num_stragglers] = True
    return masks


def random_patterns(num_workers, num_stragglers, num_patterns, seed=0):
    """Masks with exactly that many stragglers."""
    order = np.random.default_rng(seed).random((num_patterns, num_workers))
    return order.argsort(axis=1).argsort(axis=1) >= num_stragglers


def arrivals(observed):
    """Masks go by one name, numbers of finished parts by another."""
    return {"received" if observed.dtype == bool else "finished": observed}


def own_decoder(code, kind):
    """A code's own decoder of a class, or None."""
    return next(iter(code.decoders_of(kind)), None)


def start_on_devices(number, program, *arguments):
    """A process that runs a program on so many devices, which are threads."""
    flags = os.environ.get("XLA_FLAGS", "")
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=pathlib.Path(__file__).parents[1],
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={number}",
        },
    )


def printed_by(process, timeout=None):
    """Returns what a process printed, once it has ended without an error."""
    printed, errors = process.communicate(timeout=timeout)
    assert process.returncode == 0, errors[-3000:]
    return printed
