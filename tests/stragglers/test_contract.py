"""Contract of every delay model, straggler model and waiting rule."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwgc import stragglers
from tests.catalogue import delay_laws, straggler_models, waiting_rules
from tests.catalogue.row import every_row, examples_of

ROWS = [*delay_laws.ROWS, *straggler_models.ROWS, *waiting_rules.ROWS]
KEY = jax.random.key(0)
MODELS = examples_of([*delay_laws.ROWS, *straggler_models.ROWS])
RULES = examples_of(waiting_rules.ROWS)
LOADS = [2, 1, 0, 3]
every_model = pytest.mark.parametrize("name", MODELS)


def num_workers_of(model):
    """Four, or as many as a trace has."""
    return 3 if type(model) is type(MODELS["empirical"]) else len(LOADS)


@every_model
def test_shapes_and_dtypes(name, x64, make_key):
    """Either kind of key may be given, and the state keeps its own."""
    model = MODELS[name]
    count = num_workers_of(model)
    state = model.init(count)

    def sample(key, state):
        return model.sample(key, state, jnp.ones(count))

    drawn, following = jax.eval_shape(sample, make_key(0), state)
    floats = np.float64 if x64 else np.float32
    if isinstance(model, stragglers.StragglerModel):
        assert (drawn.received.shape, drawn.received.dtype) == ((count,), np.bool_)
        assert (drawn.elapsed.shape, drawn.elapsed.dtype) == ((), floats)
        drawn = drawn.times
    assert (drawn.shape, drawn.dtype) == ((count,), floats)
    before = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, state))
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), following) == (
        jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), before)
    )


@every_model
@pytest.mark.parametrize(
    ("loads", "words"),
    [
        ([1.0, -1.0, 1.0], r"at least 0.*; got loads\[1\] = -1"),
        ([1.0, np.nan, 1.0], r"at least 0.*; got loads\[1\] = nan"),
        ([1.0, np.inf, 1.0], r"finite and .*loads\[1\] = inf"),
        (4, r"have shape \(num_workers,\)"),
        ([], r"have shape \(num_workers,\)"),
    ],
    ids=["negative", "nan", "infinite", "number", "empty"],
)
def test_wrong_loads(name, loads, words):
    model = MODELS[name]
    with pytest.raises(ValueError, match=f"loads must .*{words}"):
        model.sample(KEY, model.init(3), loads)


@every_model
def test_loads_that_are_no_numbers(name):
    model = MODELS[name]
    with pytest.raises(TypeError, match="loads must be real numbers"):
        model.sample(KEY, model.init(3), ["a"] * 3)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize(
    ("times", "error", "words"),
    [
        ([1.0, 2.0, -1.0, 1.0, 3.0], ValueError, r"at least 0.*; got times\[2\] = -1"),
        (5, ValueError, r"have shape \(num_workers,\)"),
        ([], ValueError, r"have shape \(num_workers,\)"),
        (["a"] * 5, TypeError, "be real numbers"),
    ],
    ids=["negative", "number", "empty", "text"],
)
def test_wrong_times(name, times, error, words):
    with pytest.raises(error, match=f"times must .*{words}"):
        RULES[name].arrivals(KEY, times)


def has_arrays(row):
    return any(isinstance(value, np.ndarray) for value in row.arguments.values())


@every_row([row for row in ROWS if not has_arrays(row)])
def test_equal_arguments_give_equal_models(row):
    """Equal models share compiled programs."""
    assert row.example == row.example and hash(row.example) == hash(row.example)
    assert row.example != stragglers.uniform(1)


@pytest.mark.parametrize("name", RULES)
def test_descriptions_are_phrases(name):
    short, phrase = RULES[name].describe(5)
    assert short and phrase.split()[0] in ("for", "until", "by")
