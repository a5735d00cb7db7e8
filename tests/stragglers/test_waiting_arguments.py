"""Waiting rules: arguments that are rejected beyond those of the catalogue."""

import numpy as np
import pytest

from jaxwgc import codes, stragglers


def test_coverage_rejects_more_than_all_parts():
    with pytest.raises(ValueError, match="share must be"):
        stragglers.coverage(codes.uncoded(3, 9), 1.1)


def test_relative_deadline_rejects_a_factor_below_one():
    with pytest.raises(ValueError, match="factor must be at least 1"):
        stragglers.relative_deadline(0.5, 1)


def test_fastest_rejects_times_of_too_few_workers():
    with pytest.raises(ValueError, match="num_required must be at most"):
        stragglers.fastest(4).ends(np.ones(3))
