"""Loss of gradient descent with weights, from which `jaxwgc.plan` takes steps."""

import numpy as np
import pytest

from jaxwgc.studies._planning._convergence import Goal, Weights

GOAL = Goal.checked(target=0.01, condition=10.0, heterogeneity=0.0, num_workers=4)


@pytest.mark.parametrize("step", [1.5, 1.99, 2.01, 2.2, 3.0])
def test_descent_diverges_if_the_step_exceeds_2_over_the_curvature(step):
    """The largest curvature of the quadratic is 1."""
    zero = np.zeros(())
    exact = Weights(
        noise=zero, bias=zero, scale_variance=zero, lasting=zero, correlation=zero
    )
    loss = exact.loss(step, GOAL)(5)
    if step > 2:
        assert loss == np.inf
        return
    curvature, _ = GOAL.quadratic()
    np.testing.assert_allclose(loss, np.mean((1 - step * curvature) ** 10))
