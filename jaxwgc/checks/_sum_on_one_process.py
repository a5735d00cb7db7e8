"""Comparison of the decoded sum of contributions with the sum on one process."""

import contextlib
import operator
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc.checks._finding import (
    TINY,
    TOLERANCE,
    Finding,
    decoded_sums,
    flat_by_part,
    problem_of_code,
)
from jaxwgc.codes import GradientCode
from jaxwgc.gradients._contributions import key_of_term, term_of

# Largest accepted relative difference between two results of one contribution. Equal
# programs on one machine have equal results. Random numbers that do not come from the
# key change results by far more.
_NOISE = 1e-4


def compare_with_one_process(
    contribution: Callable[..., Any],
    code: GradientCode,
    params: Any,
    parts: Any,
    *,
    key: jax.Array | None,
    has_aux: bool,
) -> Finding:
    """Compares the decoded sum of contributions with their sum on one process.

    Each contribution is computed twice, by programs that are traced separately, like
    the programs of two workers.

    Args:
      contribution: `contribution(params, part)`, or with a third argument `key`.
      code: Gradient code.
      params: Pytree of arrays.
      parts: Pytree, leaves (num_parts, ...).
      key: Key of the cluster; None if the contribution takes none.
      has_aux: Whether the contribution returns a pair with aux.
    """

    def compute():
        return _terms(contribution, code.num_parts, params, parts, key, has_aux)

    terms = compute()
    with _anew():
        terms_again = compute()
    rows = flat_by_part(terms, code.num_parts)
    rows_again = flat_by_part(terms_again, code.num_parts)
    target = np.asarray(code.target, np.float64)
    # Terms that are not finite are reported as a problem, not as a NumPy warning.
    with np.errstate(invalid="ignore"):
        total = target @ rows
        expected = target @ rows_again
        decoded = decoded_sums(code, rows)
        length = max(np.linalg.norm(expected), TINY)
        errors = np.linalg.norm(decoded.sums - expected, axis=1)
        rounding = TOLERANCE * np.linalg.norm(target * np.linalg.norm(rows, axis=1))
        # With has_aux, all contributions may be zero: the user may need aux alone.
        problem = "" if has_aux else _problem_of_zero(rows)
        problem = problem or _problem_of_terms(rows, rows_again)
        if not problem:
            problem = problem_of_code(decoded, total, rounding, code)
        ratio = np.linalg.norm(decoded.sums[0]) / length
    return Finding(
        terms=terms,
        ratio=float(ratio),
        error=float(errors.max() / length),
        problem=problem,
    )


@contextlib.contextmanager
def _anew() -> Iterator[None]:
    """Makes `jax.jit` trace functions again in this context, even cached functions.

    JAX has a separate cache for each value of `jax_numpy_rank_promotion`. This option
    changes warnings, not results.
    """
    setting = "allow" if jax.config.jax_numpy_rank_promotion == "warn" else "warn"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Following NumPy automatic rank promotion")
        with jax.numpy_rank_promotion(setting):
            yield


def _terms(
    contribution: Callable[..., Any],
    num_parts: int,
    params: Any,
    parts: Any,
    key: jax.Array | None,
    has_aux: bool,
) -> Any:
    """Computes the contributions of all parts in step 0, stacked, on one process."""
    term = term_of(contribution=contribution, has_aux=has_aux)

    @jax.jit
    def value_of(params, part, index):
        key_of_part = None
        if key is not None:
            key_of_part = key_of_term(key, jnp.uint32(0), index)
        return term(params, part, key_of_part).value

    values = []
    for index in range(num_parts):
        part = jax.tree.map(operator.itemgetter(index), parts)
        values.append(jax.device_get(value_of(params, part, np.uint32(index))))
    return jax.tree.map(lambda *leaves: np.stack(leaves), *values)


def _problem_of_zero(rows: np.ndarray) -> str:
    """Returns a problem as text if all contributions are zero, or an empty string."""
    if rows.any():
        return ""
    return (
        "the contribution of every part is zero: does it use its params? Take other "
        "params if it is zero at these"
    )


def _problem_of_terms(rows: np.ndarray, rows_again: np.ndarray) -> str:
    """Returns a problem as text if a contribution is not finite or not reproducible.

    Without a problem, returns an empty string.
    """
    for part, (row, row_again) in enumerate(zip(rows, rows_again, strict=True)):
        if not np.isfinite(row).all():
            return (
                f"the contribution of part {part} is NaN or infinite. Are the part and "
                'params finite? jax.config.update("jax_debug_nans", True) finds the '
                "operation"
            )
        difference = np.linalg.norm(row - row_again)
        if not difference <= _NOISE * np.linalg.norm(row):
            return (
                f"the contribution of part {part} differs if it is traced again, by "
                f"{difference / max(np.linalg.norm(row), TINY):.2g} of its norm: the "
                "holders of a part would differ, too. It may depend on nothing but "
                "params, part and key; take random numbers from the argument key, and "
                "no time, np.random or counter of the process"
            )
    return ""
