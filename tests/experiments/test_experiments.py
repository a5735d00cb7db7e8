"""Each experiment in short: it runs, and writes the files of the documentation."""

import contextlib
import io
import json
import pathlib
import shutil
from unittest import mock

import jax
import numpy as np
import pytest

from experiments import benchmark
from experiments.codes import equal_load, noise, partial_work
from experiments.delays import (
    asynchronous,
    models,
    planning,
    slow_workers,
    when_coding_pays,
)
from experiments.errors import learning, rounds
from experiments.paper import mnist
from experiments.runner import timing
from experiments.sketching import distortion, pivotal, samplers
from experiments.stability import difficulty
from experiments.weights import fair
from jaxwgc import codes, stragglers
from tests.experiments.conftest import RESULTS


def only(table, *names):
    """Returns some entries of a table."""
    return {name: table[name] for name in names}


# In place of the paper's code: as exact, of as many parts, and compiled in no time.
GROUPS = codes.fractional_repetition(20, num_stragglers=4)
PAPER = {
    "paper.descent.CODE": GROUPS,
    "paper.descent.STRAGGLERS": stragglers.uniform(4),
    "paper.mnist.COMPRESSIONS": (20,),
    "paper.mnist.FIT_ITERATIONS": 20,
    "paper.mnist.FIT_STEPS": np.geomspace(2e-4, 2e-3, 4),
    "paper.mnist.NUM_TRAINING": 1_000,
    "paper.mnist.PUBLISHED_UNCOMPRESSED_ERROR": 10.0,
    "paper.linear_regression.COMPRESSIONS": (4,),
    "weights.convergence.DRAWS": (40, 80, 160),
    "weights.convergence.THRESHOLDS": (1e4, 1e3),
    "weights.sources.ROW_COUNTS": (20, 50),
    "weights.sources.SETTINGS": [(1, 50), (10, 50), (10, 20)],
    "weights.methods.CODE": GROUPS,
    "weights.methods.SIZES": (0.25, 0.5, 1.0),
    "weights.fair.KINDS": fair.SHOWN,
    "weights.fair.DEGREES": fair.DEGREES[-1:],
    "weights.fair.CHECKPOINTS": (5, 20),
    "weights.fair.DIGIT_CHECKPOINTS": (5, 15),
}
# Codes of each kind, and the orderings of these.
FEW = ["uncoded", "fractional_repetition", "projective_plane"]
CODES = {
    "codes.equal_load.FEW_CODES": FEW,
    "codes.equal_load.CLAIMS": [
        claim for claim in equal_load.CLAIMS if {*claim[2], *claim[3]} <= {*FEW}
    ],
    "codes.noise.exact_codes": lambda key, every=noise.exact_codes: only(
        every(key), "binary", "fractional_repetition"
    ),
    "codes.noise.PLACEMENTS": ("random",),
    "codes.recovery.FEW_SETTINGS": ("ldgm, parity degree 5",),
    "codes.partial_work.entries": lambda every=partial_work.entries: every()[:1],
    "codes.unequal.TIMES": (1.5,),
    "codes.learned.NUM_WORKERS": 12,
    "codes.learned.PROBABILITY": 0.2,
    "codes.published.COPIES": (5,),
}
SKETCHING = {
    "sketching.distortion.EMBEDDINGS": only(
        distortion.EMBEDDINGS, "count_sketch", "row_sampling, leverage"
    ),
    "sketching.distortion.FEW_FACTORS": (4,),
    "sketching.distortion.NAMES": ("count_sketch",),
    "sketching.distortion.SPARSE": ("sparse_stack",),
    "sketching.distortion.SMALL_SHAPES": {"one column": (256, 1)},
    "sketching.iterations.CODE": codes.fractional_repetition(10, num_stragglers=4),
    "sketching.iterations.FEW_STEPS": (2, 20),
    "sketching.iterations.RATIOS": (4,),
    "sketching.pivotal.FEW_FACTORS": (6,),
    "sketching.pivotal.SAMPLERS": only(
        pivotal.SAMPLERS, pivotal.INDEPENDENT, pivotal.DISTINCT, pivotal.SPATIAL
    ),
    "sketching.rank_k.NUM_PASSES": (3,),
    "sketching.samplers.ACTIVE_KINDS": (),
    "sketching.samplers.FACTORS": (16,),
    "sketching.samplers.SAMPLERS": only(samplers.SAMPLERS, "LEV, top k", "LEV, blocks"),
    "sketching.solvers.SETTINGS": ((2, 1),),
    "sketching.solvers.SKETCHES": (("count_sketch", 4),),
    "stability.difficulty.NUM_DIFFICULTIES": 1,
    "stability.difficulty.METHODS": (difficulty.PLAIN, difficulty.GRAM, difficulty.QR),
    "stability.difficulty.PRECISIONS": only(difficulty.PRECISIONS, "float32"),
}


def run_here(program, *arguments):
    """Replaces `run_program`: this process has imported JAX already."""
    printed = io.StringIO()
    command = ["-c", *map(str, arguments)]
    with mock.patch("sys.argv", command), contextlib.redirect_stdout(printed):
        exec(timing._PRELUDE + program, {})
    return json.loads(printed.getvalue())


PROGRAMS = benchmark.compilation.programs
BENCHMARK = {
    "benchmark.compilation.programs": lambda seed: only(
        PROGRAMS(seed), "a round, fractional_repetition", "leverage_scores"
    ),
    "benchmark.comparison.all_codes": lambda seed: {"uncoded": codes.uncoded(20)},
    "benchmark.comparison.run_program": run_here,
    "benchmark.leverage_scores.run_program": run_here,
    "benchmark.decoding.BERNOULLI": ((4, 20),),
    "benchmark.decoding.CODES": ((10, 5, 6),),
    "benchmark.decoding.WORST_CODES": ((10, 10, 2),),
    "benchmark.leverage_scores.EPSILONS": (0.5,),
    "benchmark.leverage_scores.RANKS": only(
        benchmark.leverage_scores.RANKS, "rank 3/5"
    ),
    "benchmark.leverage_scores.WAYS": only(
        benchmark.leverage_scores.WAYS, "svds, float64", "stream"
    ),
    # Groups, which compile in no time.
    "benchmark.many_workers.LAYOUTS": benchmark.many_workers.LAYOUTS[3:4],
    "benchmark.many_workers.NUM_PARTS": (34,),
    "benchmark.many_workers.QUICK": 10,
    "benchmark.races.METHODS": ("every arrival",),
    "benchmark.projections.OURS": ("count_sketch",),
    "benchmark.sparse_least_squares.MATRICES": only(
        benchmark.sparse_least_squares.MATRICES, "banded"
    ),
    **{
        f"benchmark.{name}.in_own_process": lambda run, *arguments: run(*arguments)
        for name in (
            *("many_workers", "compilation", "leverage_scores", "comparison", "races"),
        )
    },
}
METHODS_OF = asynchronous.methods_of
TIMES = np.random.default_rng(0).lognormal(0, 0.1, (40, 4)) * [1, 5, 1, 1]
DELAYS = {
    "delays.straggler_reports.SIZES": ((100, 4),),
    "delays.straggler_reports.NUM_ROUNDS": (300,),
    "delays.step_times.NUM_PROCESSES": (2,),
    "delays.step_times.NUM_LAPS": 100,
    "delays.step_times.NUM_EXCHANGES": 2,
    "delays.planning.COPIES": (1,),
    "delays.planning.TARGETS": (0.01,),
    "delays.planning.HETEROGENEITIES": (1.0,),
    "delays.planning.NUM_PAIRS": 1,
    "delays.planning.GOALS": {"default goal": planning.Goal()},
    "delays.planning.OPTIONS": {
        "candidates": planning.Candidates(copies=(1,)),
        "num_rounds": 40,
    },
    "delays.planning.LAWS": only(planning.LAWS, "one in 500 stalls"),
    "delays.planning.NUM_WORKERS": 4,
    "delays.models.DATA_SETS": 1,
    "delays.models.KNOWN": only(models.KNOWN, "pareto"),
    "delays.against_the_clock.SHOWN": 2,
    "delays.slow_workers.LAWS": only(slow_workers.LAWS, "1 + Exp(1)"),
    "delays.slow_workers.NUM_WORKERS": 4,
    "delays.slow_workers.PUBLISHED": {10: 2.41},
    "delays.slow_workers.read_traces": lambda: {"one_slow_seconds": TIMES},
    "delays.asynchronous.GROUPS": only(asynchronous.GROUPS, "wait for all"),
    "delays.asynchronous.LENGTH": 20.0,
    "delays.asynchronous.STEP_SIZES": np.array([0.1, 1.0]),
    "delays.asynchronous.methods_of": lambda num_workers: only(
        METHODS_OF(num_workers), "wait for all"
    ),
    "delays.when_coding_pays.LAWS": only(when_coding_pays.LAWS, "1 + Exp(1)"),
    "delays.when_coding_pays.NUM_WORKERS": 4,
    "delays.when_coding_pays.SHARES": (0.0, 1.0),
}
# All kinds are in the test of what a code can tell.
FEW_KINDS = only(rounds.Rounds.kinds, "noise", "part of a codeword") | rounds.WORST
ERRORS = {
    "errors.rounds.Rounds.kinds": FEW_KINDS,
    "errors.wrong_answers.INDEPENDENT": only(rounds.INDEPENDENT, "noise"),
    "errors.wrong_answers.TOGETHER": only(rounds.TOGETHER, "part of a codeword"),
    "errors.rounds.known_codes": lambda key: {
        "repetition": codes.fractional_repetition(6, num_stragglers=2)
    },
    "errors.wrong_answers.NUM_BITS": 2,
    "errors.wrong_answers.BATCHES": 2,
    "errors.wrong_answers.SHOWN": ("repetition",),
    "errors.wrong_answers.SIZES": np.array([1e-8, 1.0]),
    "errors.wrong_answers.CELLS": {("repetition", 0): (1, 3)},
    "errors.wrong_answers.BEYOND": {"repetition": 2},
    "errors.learning.CODE": codes.fractional_repetition(20, num_stragglers=9),
    "errors.learning.KINDS": only(learning.KINDS, "sign"),
    "errors.learning.NUM_STEPS": 2,
    "errors.learning.WAYS": ("clean", "corrected"),
}
# Others are measured in tests/distributed, and by linear-regression.
ELSEWHERE = {"coordinator", "coordinator_peers", "start", "large_messages", "table2"}
SECTIONS = ",".join(name for name in benchmark.SECTIONS if name not in ELSEWHERE)
# Real workers are in tests/distributed.
COMMANDS = [
    "mnist --runs 2",
    "linear-regression --runs 2",
    "figure2 --runs 2",
    "codes --runs 4",
    "weights --runs 4",
    "sketching --runs 2",
    "stability --runs 2",
    f"only {SECTIONS} benchmark --repeats 1 --quick",
    "report --traces 2",
    "step-times --runs 1",
    "plan --rounds 40 --trace one_slow_seconds.npy",
    "only simulated plan",
    "delays --runs 4 --trace one_slow_seconds.npy",
    "only known delays",
    "time --quick --runs 2 --trace one_slow_seconds.npy",
    "slow-workers --rounds 100",
    "asynchronous --quick",
    "wrong-answers --quick --runs 2",
]
PREFIXES = {"mnist": "table1", "linear-regression": "table2"}


with np.load(mnist.DATA) as digits:
    FEW_DIGITS = {name: digits[name][::8] for name in digits}


@pytest.fixture
def settings(monkeypatch, tmp_path):
    """Few rows of each table, and few images."""
    every = PAPER | CODES | SKETCHING | BENCHMARK | DELAYS | ERRORS
    for name, value in every.items():
        monkeypatch.setattr(f"experiments.{name}", value)
    monkeypatch.chdir(tmp_path)
    np.save("one_slow_seconds.npy", TIMES)
    np.savez("digits.npz", **FEW_DIGITS)
    monkeypatch.setattr(mnist, "DATA", pathlib.Path("digits.npz").absolute())


@pytest.mark.weekly
@pytest.mark.parametrize("line", COMMANDS)
def test_files_are_those_of_the_documentation(line, command, settings):
    """Their numbers have names of the documentation too, which `redraw` reads."""
    words = line.split()
    out = pathlib.Path("out")
    name = words[2] if words[0] == "only" else words[0]
    prefix = PREFIXES.get(name, name.replace("-", "_"))
    kept = json.loads((RESULTS / f"{prefix}.json").read_text())
    if words[0] == "only":
        out.mkdir()
        shutil.copy(RESULTS / f"{prefix}.json", out)
    status, said = command(*words, "--out", out)
    assert status == 0, said
    written = {path.name for path in out.iterdir()}
    expected = {path.name for path in RESULTS.glob(f"{prefix}[._]*")}
    assert written <= expected
    assert written == expected or "only" in line or "--trace" in line
    numbers = json.loads((out / f"{prefix}.json").read_text())
    for section, section_numbers in numbers.items():
        if isinstance(section_numbers, dict) and section != "environment":
            assert {*section_numbers} <= {*kept[section]}
    CLAIMS.get(name, lambda numbers: None)(numbers)


def check_codes(numbers):
    """Errors of 13 workers of whom 1, 3 and 5 straggle, by formulas."""
    errors = numbers["equal_load"]["errors"]
    mean = errors["uncoded(13)"]["random"]["mean"]
    np.testing.assert_allclose(mean, [1 / 13, 3 / 13, 5 / 13], 1e-5)
    # Every pattern of a block design has the same error, the worst one too.
    received = 13 - np.array([1, 3, 5])
    expected = (13 - 16 * received / (3 + received)) / 13
    plane = errors["projective_plane(3)"]
    for plane_errors in (plane["random"]["mean"], plane["adversarial"]):
        np.testing.assert_allclose(plane_errors, expected, 1e-5, 1e-12)
    # Four of five stragglers are the copies of a block of 4 of 12 parts.
    repetition = errors["fractional_repetition(12, 3)"]["adversarial"]
    np.testing.assert_allclose(repetition, [0, 0, 1 / 3], 1e-5, 1e-12)
    # In a Paley design of 11 workers, two of 5 parts each have 2 parts in common.
    paley = numbers["designs"]["errors"]["`paley(11)`"]
    received = 11 - np.array([2, 3, 4, 6, 7, 8])
    expected = (11 - 25 * received / (3 + 2 * received)) / 11
    for paley_errors in (paley["random"]["mean"], paley["worst"]):
        np.testing.assert_allclose(paley_errors, expected, 1e-5, 1e-12)
    # Optimal decoding is at least as good as one step.
    for record in numbers["random_codes"]["errors"].values():
        one_step = np.array(record["one_step"]["mean"])
        assert np.all(record["optimal"]["mean"] <= one_step + 1e-12)
    # Elimination recovers what peeling does.
    for recovered in numbers["recovery"]["recovered"].values():
        peeling_error = np.array(recovered["peeling"]["mean"])
        assert np.all(recovered["elimination"]["mean"] >= peeling_error)


def check_weights(numbers):
    """Coded descent ends at the estimate of Gauss and Markov, within its bounds."""
    over_oracle = numbers["sources"]["over_oracle"]
    np.testing.assert_allclose(over_oracle["known"]["mean"], 1, rtol=1e-4)
    # The first setting has equal variances.
    assert over_oracle["unweighted"]["mean"][0] == pytest.approx(1, rel=1e-4)
    assert not any(numbers["convergence"]["sketches"]["violations"])


def check_slow_workers(numbers):
    """Every part of the trace is ready when the first of its two holders has it."""
    owners, place = np.divmod(np.arange(32), 8)
    by_owner = TIMES[:, owners] * (place + 1) / 8
    by_helper = TIMES[:, owners - 1] * (1 + (8 - place) / 8)
    ready = np.minimum(by_owner, by_helper).max(axis=1)
    for result in numbers["on_request"][:2]:
        seconds = {name: seconds["mean"] for name, seconds in result["seconds"].items()}
        assert seconds["bound"] < seconds["request_3"] < seconds["all"]
    mean = numbers["on_request"][0]["seconds"]["request_2"]["mean"]
    assert mean == pytest.approx(ready.mean(), rel=1e-5)
    proportional, constant, _ = numbers["fixed_share"]
    # The draws are equal, so that proportional times are the load times as long.
    for copies in (2, 4):
        name = f"code_{copies}"
        assert proportional["seconds"][name]["mean"] == pytest.approx(
            copies * constant["seconds"][name]["mean"], rel=1e-5
        )
    # Means of 1 + the slowest of n / d groups, of which each has the least of d times.
    expected = {"all": 1 + 25 / 12, "code_2": 1 + 3 / 4, "code_4": 1 + 1 / 4}
    for name, mean in expected.items():
        seconds = constant["seconds"][name]
        assert seconds["mean"] == pytest.approx(mean, abs=5 * seconds["standard_error"])


CLAIMS = {
    "codes": check_codes,
    "weights": check_weights,
    "slow-workers": check_slow_workers,
}


@pytest.mark.weekly
def test_errors_within_the_correction_bound_are_corrected():
    """Two errors of any kind are corrected, three are not."""
    game = rounds.Rounds(codes.reed_solomon(8, 8, 5), 3, jax.random.key(0))
    for kind in game.kinds:
        played = game.play(kind, 2, 0)
        assert played.is_right.all() and played.error.max() < 1e-5, kind
    assert not game.play("part of the lightest codeword", 3, 0).is_right.any()
    different = game.play("noise", 1, 1, batch=1)
    assert not np.array_equal(different.error, game.play("noise", 1, 1).error)
