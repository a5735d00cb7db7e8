"""Every public constructor has a row, and every row says what its numbers must be."""

import inspect

import pytest

from jaxwgc import sketching
from tests.catalogue.row import every_row, makes
from tests.catalogue.rows import COMPLETE_ROWS, EVERY_ROW, PROTOCOLS, SKETCHING


@pytest.mark.parametrize(
    ("module", "kind", "catalogue"),
    PROTOCOLS,
    ids=[kind.__name__ for _, kind, _ in PROTOCOLS],
)
def test_every_constructor_has_a_row(module, kind, catalogue):
    public = {name for name in module.__all__ if makes(getattr(module, name), kind)}
    assert public, f"no constructor of {module.__name__} makes a {kind.__name__}"
    missing = public - {row.name for row in catalogue.ROWS}
    path = catalogue.__name__.replace(".", "/") + ".py"
    assert not missing, f"add a row to ROWS of {path} for: {', '.join(sorted(missing))}"


def test_every_function_of_sketching_has_a_row():
    public = {name: getattr(sketching, name) for name in sketching.__all__}
    functions = {name for name, value in public.items() if inspect.isfunction(value)}
    missing = functions - {row.name for row in SKETCHING}
    assert not missing, (
        "add a row to ROWS of scores.py, samplers.py, embeddings.py or solvers.py in "
        f"tests/catalogue for: {', '.join(sorted(missing))}"
    )


@every_row(COMPLETE_ROWS)
def test_rows_have_every_parameter(row):
    parameters = inspect.signature(row.make).parameters
    assert set(row.arguments) == set(parameters)


@every_row(EVERY_ROW)
def test_rows_have_a_rule_for_every_number(row):
    numbers = {
        name
        for name, value in row.arguments.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
        if name not in row.kinds
    }
    assert set(row.rules) == numbers
