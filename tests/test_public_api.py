"""Contract of public names: a docstring whose example runs, and no side effects."""

import doctest
import inspect
import json
import pathlib
import subprocess
import sys
import types

import numpy as np
import pytest

import jaxwgc

ROOMS = """aggregate asynchronous checks codes coding corruptions decoders distributed
    gradients parts planning reports simulation sketching stragglers"""
MODULES = [jaxwgc, *(getattr(jaxwgc, room) for room in ROOMS.split())]
# Every public object of the library by its dotted name, modules aside.
NAMES = {
    f"{module.__name__}.{name}": obj
    for module in MODULES
    for name in module.__all__
    if not isinstance(obj := getattr(module, name), types.ModuleType)
}
# Constructors of models are classes with the names of functions.
FUNCTIONS = {
    name: obj
    for name, obj in NAMES.items()
    if inspect.isfunction(obj) or name.rpartition(".")[2].islower()
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_docstrings_of_functions(name):
    """A line of summary, then the sections of the design."""
    docstring = inspect.getdoc(FUNCTIONS[name])
    first, _, rest = docstring.partition("\n")
    assert len(first) > 10
    assert first[-1] in ".:;"
    assert not rest or rest.startswith("\n")
    # What a constructor returns, its first line says.
    is_class = inspect.isclass(FUNCTIONS[name])
    parameters = inspect.signature(FUNCTIONS[name]).parameters
    sections = ["Args:"] if parameters else []
    sections += ["Example:"] if is_class else ["Returns:", "Example:"]
    positions = [docstring.find(f"\n{section}\n") for section in sections]
    assert min(positions) > 0
    assert positions == sorted(positions)
    for parameter in parameters:
        assert f"\n  {parameter}: " in docstring, parameter


def run(example):
    outcome = doctest.DocTestRunner().run(example)
    assert outcome.attempted > 0 and outcome.failed == 0


# Once where a function has two names.
@pytest.mark.parametrize(
    "name", {obj: name for name, obj in FUNCTIONS.items()}.values()
)
def test_examples_of_functions(name):
    """There is one, it calls the function, and it runs."""
    function = FUNCTIONS[name]
    finder = doctest.DocTestFinder(recurse=False)
    [test] = finder.find(function, name, globs={})
    assert test.examples
    source = "".join(example.source for example in test.examples)
    assert function.__name__ in source
    # Doctests may not lean on names of the module that they are in.
    test.globs.clear()
    run(test)


EXAMPLES_OF_TYPES = {
    test.name: test
    for obj in {NAMES[name] for name in NAMES if name not in FUNCTIONS}
    if inspect.isclass(obj)
    for test in doctest.DocTestFinder().find(obj, obj.__name__, globs={})
    if test.examples
}


@pytest.mark.parametrize("name", sorted(EXAMPLES_OF_TYPES))
def test_examples_of_types(name):
    """Examples are in docstrings of a class and of its methods."""
    run(EXAMPLES_OF_TYPES[name])


def test_rooms_are_those_of_the_pages():
    """Each public room has a page of the API, and is an attribute of the library."""
    pages = (pathlib.Path(__file__).parents[1] / "docs" / "api").glob("*.md")
    assert {page.stem for page in pages} - {"index"} == {*ROOMS.split()}
    rooms = {
        name
        for name in jaxwgc.__all__
        if isinstance(getattr(jaxwgc, name), types.ModuleType)
    }
    assert rooms == {*ROOMS.split()}


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_names_are_listed_and_found(module):
    assert {*module.__all__} <= {*dir(module)}
    assert all(hasattr(module, name) for name in module.__all__)
    assert len({*module.__all__}) == len(module.__all__)


NAMES_WITHOUT_JAX = """
import sys
import jaxwgc, jaxwgc.distributed
assert {*jaxwgc.__all__, "__version__"} <= {*dir(jaxwgc)}
assert {*jaxwgc.distributed.__all__} <= {*dir(jaxwgc.distributed)}
assert "jax" not in sys.modules
"""


def test_names_are_listed_without_jax():
    """It is imported with the first name that is used."""
    root = pathlib.Path(jaxwgc.__file__).parents[1]
    subprocess.run([sys.executable, "-c", NAMES_WITHOUT_JAX], check=True, cwd=root)


PROGRAM = """
import json, sys
import jax, jax.numpy, numpy, optax, optax.experimental, scipy
from jax._src import xla_bridge

def snapshot():
    config = {key: repr(value) for key, value in jax.config.values.items()}
    return config, sorted({name.partition(".")[0] for name in sys.modules})

before = snapshot()
import jaxwgc
modules = sorted(sys.modules)
import scipy.special
rest = snapshot()
from jaxwgc import *
jaxwgc.distributed.RayCluster, jaxwgc.plan, jaxwgc.partition
is_started = xla_bridge.backends_are_initialized()
from jaxwgc.__main__ import main
main(["report", sys.argv[1]])
print(json.dumps([before, rest, snapshot(), is_started, modules]))
"""


def test_import_changes_nothing(tmp_path):
    """No configuration of JAX, and no device, so that one can still choose among them.

    And no package beyond what jax, optax, numpy and scipy import themselves, even when
    the command line reports on a NumPy file: neither Ray, matplotlib nor pandas.
    """
    path = tmp_path / "times.npy"
    np.save(path, [[1, 2, 8], [1.5, 2, 9], [1, np.nan, 7]])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, path],
        stdout=subprocess.PIPE,
        check=True,
        cwd=pathlib.Path(jaxwgc.__file__).parents[1],
    )
    *snapshots, is_started, modules = json.loads(done.stdout.splitlines()[-1])
    (config, packages), (_, scipys), (config_after, all_packages) = snapshots
    assert len(config) > 50
    assert config_after == config
    known = {*sys.stdlib_module_names, "jaxwgc"}
    assert {name.partition(".")[0] for name in modules} - {*packages, *known} == set()
    assert {*all_packages} - {*scipys, *known} == set()
    # What takes half of the time to import is imported when it is used.
    later = {"scipy.linalg", "scipy.special", "jaxwgc.sketching", "jaxwgc.simulation"}
    assert not later & {*modules}
    assert not is_started


# What a random function evaluates, before its key.
EVALUATED = {"code", "codes", "trial", "model", "delay", "delays", "waiting"}
EVALUATED |= {"methods", "rule", "problem", "optimizer"}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_key_comes_first_or_right_after_what_is_evaluated(name):
    """As the page of the API says. Optional keys come later."""
    parameters = inspect.signature(FUNCTIONS[name]).parameters
    if "key" in parameters and parameters["key"].default is not None:
        names = list(parameters)
        before = set(names[: names.index("key")])
        # A plan is for a delay and a number of workers.
        if name.endswith(".plan"):
            before.remove("num_workers")
        assert before <= EVALUATED
