"""The race of waiting, coding and asynchronous rules."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxwgc
from jaxwgc import asynchronous, codes, stragglers
from jaxwgc.asynchronous._race import _best_place

KEY = jax.random.key(0)
NUM_WORKERS = 4
CENTERS = np.array([[1, 0], [2, 5], [3, -2], [6, 1]], np.float32)
SOLUTION = CENTERS.mean(axis=0)
LAW = stragglers.shifted_exponential(shift=1.0, rate=5.0)
ONE_SLOW = stragglers.unequal_speeds(LAW, [1, 1, 1, 0.2])
SIZES = [0.003, 0.01, 0.03, 0.1]


def loss(params, part):
    return jnp.sum((params - part) ** 2)


PROBLEM = asynchronous.Problem(loss, CENTERS, np.zeros(2, np.float32), NUM_WORKERS)
UNCODED = codes.uncoded(NUM_WORKERS)
METHODS = {
    "wait": asynchronous.synchronous(UNCODED, stragglers.fastest(4)),
    "ignore": asynchronous.synchronous(UNCODED, stragglers.fastest(3)),
    "stored": asynchronous.synchronous(
        UNCODED, stragglers.fastest(3), late="busy", memory=True
    ),
    "every arrival": asynchronous.every_arrival(),
    "ringleader": asynchronous.ringleader(),
}


def race(methods=METHODS, delay=ONE_SLOW, problem=PROBLEM, **options):
    options = {"seconds": 100.0, "step_sizes": SIZES, "num_seeds": 4, **options}
    options.setdefault("solution", SOLUTION)
    return jaxwgc.race(methods, problem, delay, KEY, **options)


@functools.cache
def results():
    return race()


def test_rules_with_a_bias_do_not_reach_the_solution_of_parts_that_differ():
    """The slow worker's part is far from the others."""
    reached = results().times_to(0.001)
    for name in ("wait", "stored", "ringleader"):
        assert np.isfinite(reached[name]).all(), name
    for name in ("ignore", "every arrival"):
        assert np.isinf(reached[name]).all(), name


def test_distances_belong_to_the_losses():
    """Of this loss, relative losses are squares of relative distances."""
    relative = results().distance / results().distance[..., :1]
    np.testing.assert_allclose(results().loss, relative**2, atol=1e-5)
    assert np.all(results().loss[..., 0] == 1)


def test_rounds_take_the_time_of_the_slowest_worker():
    """The updates of a race that waits are as many as its rounds."""
    place = results().methods.index("wait")
    rounds = results().num_updates[place]
    assert np.all((rounds > 11) & (rounds < 21))


def test_each_method_has_its_best_step():
    """On one step size, a race gives no lower loss."""
    best = results().loss[:, :, -1].mean(axis=1)
    for size in SIZES:
        alone = race(step_sizes=[size]).loss[:, :, -1].mean(axis=1)
        assert np.all(best <= 2 * alone + 1e-5), size


def test_the_table_has_times_and_marks():
    text = str(results())
    assert "race of 100" in text and "median of 4 seeds" in text
    [row] = [line for line in text.splitlines() if line.startswith("every arrival")]
    assert row.endswith("-")


def test_the_figure_has_medians_and_quartiles():
    [axes] = results().plot().axes
    place = results().methods.index("ringleader")
    low, median, high = np.quantile(results().loss[place], [0.25, 0.5, 0.75], axis=0)
    np.testing.assert_allclose(axes.lines[place].get_ydata(), median)
    [band] = axes.collections[place].get_paths()
    assert band.vertices[:, 1].min() == pytest.approx(low.min())
    assert len(axes.lines) == len(METHODS)


def test_rounds_of_drawn_parts_step_by_the_gradient_of_all():
    """If all parts are equal, it does not matter which are drawn."""
    wait = {"wait": METHODS["wait"]}
    drawn = asynchronous.Problem(
        loss,
        parts=np.repeat(CENTERS[3:], 8, axis=0),
        start=PROBLEM.start,
        num_workers=NUM_WORKERS,
        draws="one of all",
    )
    own = dataclasses.replace(
        PROBLEM,
        loss=lambda params, part: 2 * loss(params, part),
        parts=np.repeat(CENTERS[3:], 4, axis=0),
    )
    options = {"methods": wait, "step_sizes": [0.01], "solution": CENTERS[3]}
    by_drawn = race(problem=drawn, **options).loss
    np.testing.assert_allclose(by_drawn, race(problem=own, **options).loss, rtol=1e-4)
    assert by_drawn[0, :, -1].max() < 0.5


def test_the_best_step_reaches_the_target_first_and_is_finite():
    losses = np.array(
        [
            [[1, 0.3, 0.2, 0.05]],
            [[1, 0.09, 0.08, 0.07]],
            [[1, 0.01, 0.01, np.inf]],
            [[1, 0.5, 0.4, 0.3]],
        ]
    )
    sizes = np.array([1.0, 2.0, 3.0, 4.0])
    assert _best_place("mine", sizes, losses, target=0.1) == 1
    assert _best_place("mine", sizes, losses, target=0.001) == 0


def results_of(*losses):
    """Results of one method, with given losses of each seed."""
    losses = np.array([losses])
    return asynchronous.Race(
        methods=("mine",),
        seconds=np.arange(losses.shape[2]) * 0.5,
        loss=losses,
        distance=np.full_like(losses, np.nan),
        num_updates=np.ones(losses.shape[:2], int),
        step_sizes=np.array([0.1]),
        offered_step_sizes=np.array([0.1]),
        targets=(0.1,),
    )


def test_a_target_is_reached_if_the_loss_stays_below_it():
    raced = results_of([1, 0.05, 0.2, 0.1], [1, 0.05, 0.02, 0.01], [1, 0.2, 0.05, 0.3])
    np.testing.assert_array_equal(raced.times_to(0.1)["mine"], [1.5, 0.5, np.inf])


def test_seeds_whose_parameters_become_infinite_are_counted():
    raced = results_of([1, 0.5, np.inf], [1, 0.5, 0.1], [1, np.nan, np.nan])
    assert "Parameters of mine become infinite in 2 seeds" in str(raced)


def test_codes_of_every_kind_race_with_draws_from_all_parts():
    """Their rounds draw parts, and so do the computations of others."""
    problem = dataclasses.replace(PROBLEM, draws="one of all")
    methods = {
        "messages": asynchronous.synchronous(
            codes.fractional_repetition(4, 1), stragglers.until_decodable
        ),
        "finished parts": asynchronous.synchronous(
            codes.replicated(4, copies=2), stragglers.until_decodable
        ),
        "rennala": asynchronous.rennala(4),
    }
    raced = race(methods, problem=problem, seconds=300.0)
    for name, losses in zip(raced.methods, raced.loss[..., -1], strict=True):
        assert np.all(losses < 0.3), name


def test_a_rule_that_waits_for_a_lost_worker_is_named():
    delay = stragglers.empirical(np.array([[1.0, 1.2, 0.9, np.inf]]))
    text = str(race({"ringleader": METHODS["ringleader"]}, delay=delay))
    assert "ringleader makes no update: it waits for workers that never" in text


@dataclasses.dataclass(frozen=True)
class RestartsNobody(asynchronous.AsynchronousRule):
    def decide(self, arrival, state):
        nobody = jnp.zeros(NUM_WORKERS, bool)
        return asynchronous.Decision(True, arrival.gradient, nobody), state


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"methods": {"mine": RestartsNobody()}},
            r"methods\['mine'\] must restart workers with the newest parameters",
        ),
        (
            {"step_sizes": [1e9], "methods": {"all": METHODS["every arrival"]}},
            r"step size at which the losses of methods\['all'\] stay finite; got",
        ),
        ({"methods": {}}, "methods must not be empty"),
        (
            {
                "methods": {
                    "wait": asynchronous.synchronous(
                        codes.uncoded(5), stragglers.fastest(5)
                    )
                }
            },
            r"code of methods\['wait'\] must have 4 workers and 4 parts",
        ),
        (
            {"delay": stragglers.affine(LAW, overhead=0.0, slope=0.0)},
            "delay must draw positive times",
        ),
        ({"step_sizes": [0.1, -0.1]}, "step_sizes and targets must be positive"),
        ({"targets": [0.0]}, "step_sizes and targets must be positive"),
        ({"solution": [1.0, 2.0]}, "solution must have the structure and shapes"),
        (
            {"solution": np.zeros(2, np.float32)},
            "problem.start must have a finite total loss, above the total loss of sol",
        ),
        ({"seconds": -1.0}, "seconds must be positive"),
    ],
)
def test_races_that_cannot_be_run_are_rejected(options, message):
    with pytest.raises(ValueError, match=message):
        race(**options)


def test_an_optimizer_in_place_of_its_constructor_is_rejected():
    with pytest.raises(TypeError, match="optimizer must be a function"):
        race(optimizer=optax.sgd(0.1))


def test_losses_of_rows_are_rejected():
    rows = dataclasses.replace(PROBLEM, loss=lambda params, part: params - part)
    with pytest.raises(
        ValueError, match=r"loss must return a scalar; got shape \(2,\)"
    ):
        race(problem=rows)
