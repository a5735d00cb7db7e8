"""Profiles of Hypothesis."""

import pytest
from hypothesis import HealthCheck, settings


@pytest.mark.parametrize("name", ["default", "thorough"])
def test_no_verdict_of_hypothesis_depends_on_seconds(name):
    profile = settings.get_profile(name)
    assert profile.deadline is None
    assert HealthCheck.too_slow in profile.suppress_health_check
