"""Checks that waiting rules fit the codes that they wait for."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc._common import array_validation, validation
from jaxwgc.codes import GradientCode
from jaxwgc.stragglers import WaitingRule
from jaxwgc.stragglers._models import check_round

# Relative difference between entries of encoding matrices that counts as rounding in
# float32.
_ROUNDING = 1e-5


def rule_of_code(name: str, rule: Any, code: GradientCode) -> WaitingRule:
    """Returns the waiting rule for a code; raises if it does not fit the code.

    Args:
      name: Name of rule and code in error messages.
      rule: Waiting rule, or function of a code.
      code: Gradient code.

    Raises:
      ValueError: If the rule or the function does not fit the code.
      TypeError: If it is not a rule, or returns no valid `Arrivals`.
    """
    if not isinstance(rule, WaitingRule):
        try:
            rule = rule(code)
        except Exception as error:
            raise ValueError(
                f"{name} must be a waiting rule, or a function that takes a code and "
                f"returns a rule; the function raised {type(error).__name__}: {error}"
            ) from error
    if not isinstance(rule, WaitingRule):
        raise TypeError(
            f"{name} must be a waiting rule, e.g. stragglers.fastest(6), or a function "
            "that takes a code and returns a rule, e.g. stragglers.until_decodable; "
            f"the function returned {validation.in_short(rule)}"
        )
    if rule.code is None:
        try:
            times = jax.ShapeDtypeStruct((code.num_workers,), jnp.result_type(float))
            arrivals = jax.eval_shape(rule.arrivals, jax.random.key(0), times)
            method = f"{type(rule).__name__}.arrivals"
            check_round(method, arrivals, code.num_workers)
        except TypeError as error:
            raise TypeError(f"{name} does not fit the code: {error}") from error
        except ValueError as error:
            raise ValueError(f"{name} does not fit the code: {error}") from error
        return rule
    array_validation.check_concrete(
        f"code of {name}", rule.code, "a study runs on the host"
    )
    if not _are_equal_up_to_weights(rule.code, code):
        raise ValueError(
            f"{name} must wait for the messages of this code; got a rule for another "
            f"code, {rule.code}. Pass a function that takes a code and returns a rule, "
            "e.g. stragglers.until_decodable"
        )
    return rule


def _are_equal_up_to_weights(rule_code: GradientCode, code: GradientCode) -> bool:
    """Returns whether two codes are equal except for the weights of their parts.

    A code of `jaxwgc.weighted` decodes from the messages that decode the code itself.
    """
    if rule_code is code:
        return True
    matrix = _matrix_of_unit_weights(code)
    rule_matrix = _matrix_of_unit_weights(rule_code)
    if (
        rule_code.messages_per_worker != code.messages_per_worker
        or rule_matrix.shape != matrix.shape
        or not np.array_equal(rule_code.assignment, code.assignment)
        or not np.array_equal(rule_code.required_parts, code.required_parts)
    ):
        return False
    # Parts of weight 0 have no entries in `matrix`, so they are not compared.
    rule_matrix = np.where(matrix.any(axis=0), rule_matrix, 0)
    slack = _ROUNDING * np.abs(matrix).max()
    return bool(np.allclose(rule_matrix, matrix, rtol=_ROUNDING, atol=slack))


def _matrix_of_unit_weights(code: GradientCode) -> np.ndarray:
    """Returns the encoding matrix with columns divided by the weights of their parts.

    Columns of parts of weight 0 are not divided.
    """
    weights = np.asarray(code.target, np.float64).repeat(code.num_segments)
    return np.asarray(code.encoding_matrix) / np.where(weights == 0, 1, weights)
