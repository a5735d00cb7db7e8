"""Names of rounds in a straggler report: steps, or numbers from 0."""

import numpy as np
import pandas
import pytest

import jaxwgc
from jaxwgc.reports import Kind


def trace(num_rounds=200):
    times = np.exp(0.05 * np.random.default_rng(0).standard_normal((num_rounds, 8)))
    times[30:, 3] *= 2
    return times


STEPS = 1000 + 10 * np.arange(200)


def test_changes_are_named_by_steps():
    report = jaxwgc.straggler_report(trace(), steps=STEPS)
    assert report.kinds[3] == Kind.SINCE
    assert report.change_round[3] == 1300
    assert report.kind_texts[3] == "since step 1300"
    assert "Rounds count from 0." not in str(report)


def test_steps_of_a_frame_are_taken():
    frame = pandas.DataFrame(trace(), columns=[f"host{i}" for i in range(8)])
    frame.insert(0, "step", STEPS)
    assert jaxwgc.straggler_report(frame).kind_texts[3] == "since step 1300"
    # Rows without steps are numbered.
    without = frame.drop(columns="step")
    assert jaxwgc.straggler_report(without).kind_texts[3] == "since round 30"


def test_rounds_of_missing_responses_and_of_lost_time_are_named_by_steps():
    times = np.exp(0.05 * np.random.default_rng(0).standard_normal((200, 8)))
    times[150:, 2] = np.nan
    times[60:120, 0] *= 3
    advice = jaxwgc.straggler_report(times, steps=STEPS).advice
    assert advice.startswith("Check worker 2: no response since step 2500. Find out ")
    assert advice.endswith("worker 0, from step 1600 to step 2190.")


def test_the_text_says_once_from_where_rounds_count_if_it_names_any():
    assert str(jaxwgc.straggler_report(trace())).count("Rounds count from 0.") == 1
    calm = np.exp(0.05 * np.random.default_rng(0).standard_normal((200, 8)))
    assert "Rounds count" not in str(jaxwgc.straggler_report(calm))


@pytest.mark.parametrize("steps", [STEPS[:-1], STEPS[::-1], np.zeros(200, dtype=int)])
def test_steps_must_increase_and_be_one_per_round(steps):
    with pytest.raises(ValueError, match="steps must"):
        jaxwgc.straggler_report(trace(), steps=steps)


def test_steps_must_be_integers():
    with pytest.raises(TypeError, match="steps must be integers"):
        jaxwgc.straggler_report(trace(), steps=STEPS + 0.5)
