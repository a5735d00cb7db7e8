"""Comparison of a coded step with the gradient on the whole data."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from jaxwgc._common import array_validation, validation
from jaxwgc.aggregate._policy import shapes_of
from jaxwgc.checks._loss_on_data import compare_with_loss
from jaxwgc.checks._optimizers import OptimizerProbe, Rounds, states_of
from jaxwgc.checks._sum_on_one_process import compare_with_one_process
from jaxwgc.codes import GradientCode
from jaxwgc.gradients._contributions import check_alternatives, check_key_is_used
from jaxwgc.gradients._gradients import check_params

# Size of a random shift of the parameters before measurements, relative to their root
# mean square. Weight decay has no effect on parameters that are zero.
_SHIFT = 0.01


class StepReport(NamedTuple):
    """Result of `check_step`: problems of a training step, and what was measured."""

    problems: tuple[str, ...]
    gradient_ratio: float
    gradient_error: float
    num_responses: np.ndarray
    num_undecodable: int

    @property
    def ok(self) -> bool:
        """True if no problems were found."""
        return not self.problems

    def __str__(self) -> str:
        count = len(self.problems)
        noun = "problem" if count == 1 else "problems"
        lines = [
            f"{count or 'no'} {noun} found",
            f"decoded sum over the parts: {self.gradient_ratio:.4g} times as long as "
            f"expected, relative error {self.gradient_error:.2g}",
        ]
        if len(self.num_responses):
            lines.append(
                f"rounds: {self.num_undecodable} of {len(self.num_responses)} could "
                "not be decoded, with "
                f"{self.num_responses.mean():.3g} responses on average"
            )
        for problem in self.problems:
            lines.append(f"- {problem}")
        return "\n".join(lines)


def check_step(
    loss: Callable[..., Any] | None = None,
    code: GradientCode | None = None,
    params: Any = None,
    parts: Any = None,
    *,
    contribution: Callable[..., Any] | None = None,
    data: Any = None,
    batches: Callable[[int, int], Any] | None = None,
    key: jax.Array | None = None,
    optimizer: optax.GradientTransformation | None = None,
    received: jax.typing.ArrayLike | None = None,
    step: Callable[..., Any] | None = None,
    has_aux: bool = False,
    whole_loss: Callable[..., Any] | None = None,
) -> StepReport:
    """Compares a coded step with the gradient on the whole data; reports mistakes.

    Most mistakes in a coded step raise no error: training is slower, or converges to
    another minimum. Call this once, outside of `jax.jit`, with parameters from the
    start of training. The loss must be deterministic: switch dropout off.

    - With the loss alone it detects another gradient than that on the data, e.g. of a
      mean in place of a sum over the rows of a part, a regulariser that counts once per
      part, rows that interact, or parts of other data. It also detects padding without
      weights, a sample without its weights, and gradients that are not finite.
      Differences of the gradients of less than 2% count as rounding.
    - With an optimizer it also detects transformations before the aggregator, and
      rounds that cannot be decoded because the model waits for too few workers or for
      another code, or because a mask is inverted.
    - With a step it also detects a state that is not passed on.
    - With `batches` it also detects batches that differ from call to call.
    - With `contribution`, the decoded sum is compared with the sum over the parts on
      one process. It detects contributions that are not finite, and contributions that
      depend on more than params, part and key: on time, or random numbers of their own.

    The gradient on the whole data is that of `loss` on all rows at once. A loss that
    is divided by the number of parts is smaller there: pass the undivided loss as
    `whole_loss`. With `batches` and no `whole_loss`, a constant factor is no problem.

    Weights of the code may average the parts, e.g. 1/num_parts for a loss that is a
    mean. They may also be weights of rows, and are then applied to all rows.

    Args:
      loss: `loss(params, part) -> scalar`, for parts with any number of rows. None with
        `contribution`.
      code: Gradient code.
      params: Pytree of float arrays.
      parts: Pytree with leaves (num_parts, m, ...): `(parts, row_weights)` from
        `jaxwgc.partition`, or parts with the structure of data. With `contribution`,
        any pytree with leaves (num_parts, ...).
      contribution: `contribution(params, part)` or `contribution(params, part, key)` of
        a `jaxwgc.distributed.RayCluster`, in the place of `loss` and `data`.
      data: Pytree of arrays with a leading axis of N rows, before `jaxwgc.partition`
        or sampling.
      batches: `batches(step, part)` of a `jaxwgc.distributed.RayCluster`, in the place
        of `parts` and `data`: pytree with leaves (m, ...). Parts are the batches of
        step 0, and the data are their rows.
      key: Key of the cluster, for a contribution that takes a key.
      optimizer: Optax transformation that contains `jaxwgc.coded_aggregate` or
        `jaxwgc.decode_aggregate`. Its `update` must not need extra arguments of other
        transformations.
      received: Which workers responded in real rounds, bool (num_workers,) or
        (rounds, num_workers), as passed to the step.
      step: `step(params, state) -> (params, state, ...)`, your own step with that
        optimizer. It is run a few times. Responses in these rounds replace simulated
        ones.
      has_aux: Whether `loss` or `contribution` returns a pair with aux.
      whole_loss: `whole_loss(params, rows) -> scalar`, the loss that training should
        minimise, for all rows in the form of one part. By default, this is `loss`.

    Returns:
      A report, to print. `ok` is True if no problems were found, and `problems` is a
      tuple of texts: what was measured, its likely cause, what to do. `gradient_ratio`
      is the norm of the decoded gradient if all workers respond, over the norm of the
      gradient of the loss on the data. `gradient_error` is the norm of their
      difference, relative to the latter: the maximum over two rounds, of all workers,
      and of all but as many as the code tolerates. With `batches` and no `whole_loss`,
      the latter is scaled to the norm of the former. For a sample of parts, the data
      are its own rows. With a contribution, both compare with the sum over the parts on
      one process. `num_responses` is the number of workers that responded in each
      tested round, int (rounds,), empty without an optimizer, a step or `received`, and
      `num_undecodable` the number of these rounds that could not be decoded.

    Raises:
      ValueError: If not either `parts` and `data` or `batches` are given, or not either
        `loss` or `contribution`; if shapes do not match, parts are not like data,
        batches are not alike, or optimizer does not have exactly one aggregator, with
        as many workers as the code.
      TypeError: If an argument has the wrong type, or is traced.

    Example:
      >>> import jax, jax.numpy as jnp, jaxwgc
      >>> x = jax.random.normal(jax.random.key(0), (100, 3))
      >>> def loss(params, part):
      ...     x, row_weights = part
      ...     return jnp.mean(row_weights * (x @ params["w"] - 1) ** 2)
      >>> parts = jaxwgc.partition(x, num_parts=4)
      >>> code = jaxwgc.codes.fractional_repetition(4, num_stragglers=1)
      >>> report = jaxwgc.check_step(loss, code, {"w": jnp.ones(3)}, parts, data=x)
      >>> report.ok, round(report.gradient_ratio, 3)
      (False, 4.0)
      >>> print(report.problems[0].partition(":")[0])
      the sum over the parts differs from the gradient of the loss on the data
    """
    code = GradientCode.check(code)
    _check_combination(loss, contribution, parts, data, batches, whole_loss)
    if contribution is not None:
        check_key_is_used(key, batch=None, contribution=contribution)
    if batches is not None:
        parts = _parts_of_step(batches, code.num_parts)
        if contribution is None:
            data = _rows_of(parts)
    array_validation.check_concrete(
        "arguments",
        (code, params, parts, data, received),
        "check_step looks at values",
    )
    if step is not None and optimizer is None:
        raise ValueError("step= needs optimizer=, the optimizer of the step; got None")
    array_validation.check_leading_axis("parts", parts, code.num_parts, "num_parts")
    check_params(params)
    shifted = _perturbed(params)
    if contribution is not None:
        finding = compare_with_one_process(
            contribution, code, shifted, parts, key=key, has_aux=has_aux
        )
    else:
        assert loss is not None
        finding = compare_with_loss(
            loss,
            code,
            shifted,
            parts,
            data,
            has_aux=has_aux,
            whole_loss=whole_loss,
            any_factor=batches is not None and whole_loss is None,
        )
    problems = [finding.problem]
    rounds: list[Rounds] = []
    if received is not None:
        rounds.append(Rounds.observed(code, received))
    if optimizer is not None:
        probe = OptimizerProbe(optimizer, code, shifted)
        problems.append(probe.problem_of_order(finding.terms))
        if step is not None:
            states = states_of(step, params, probe.state)
            problems.append(probe.problem_of_state(finding.terms, states[0], states[1]))
            rounds.append(Rounds.between(states))
        elif received is None and probe.simulates:
            rounds.append(probe.simulated_rounds(finding.terms))
    problems.extend(observed.problem(code) for observed in rounds)
    if batches is not None:
        problems.append(_problem_of_batches(batches, parts))
    counts = [observed.received.sum(1) for observed in rounds]
    return StepReport(
        problems=tuple(problem for problem in problems if problem),
        gradient_ratio=finding.ratio,
        gradient_error=finding.error,
        num_responses=np.concatenate([np.zeros(0, int), *counts]),
        num_undecodable=sum(int(observed.failed.sum()) for observed in rounds),
    )


def _check_combination(
    loss: Callable[..., Any] | None,
    contribution: Callable[..., Any] | None,
    parts: Any,
    data: Any,
    batches: Callable[[int, int], Any] | None,
    whole_loss: Callable[..., Any] | None,
) -> None:
    """Raises ValueError if arguments of `check_step` are missing or in conflict."""
    check_alternatives(loss, contribution)
    if batches is not None and not (parts is None and data is None):
        raise ValueError(
            "batches= returns all data, so parts and data= must not be given; got "
            "batches= and at least one of them"
        )
    if contribution is not None:
        if data is not None or whole_loss is not None:
            raise ValueError(
                "contribution= is compared with its sum over the parts, so data= and "
                "whole_loss= must not be given; got contribution= and at least one of "
                "them"
            )
        if batches is None and parts is None:
            raise ValueError("contribution= needs parts or batches=; got neither")
    elif batches is None and (parts is None or data is None):
        raise ValueError(
            "loss needs parts and data=, or batches=; got batches=None, and None for "
            "parts or data="
        )


def _perturbed(params: Any) -> Any:
    """Returns randomly shifted parameters, so that weight decay has an effect."""
    generator = np.random.default_rng(0)

    def move(leaf):
        leaf = np.asarray(leaf)
        size = np.sqrt(np.mean(np.abs(leaf.astype(complex)) ** 2)) or 1
        shift = _SHIFT * size * generator.normal(size=leaf.shape)
        return leaf + shift.astype(leaf.dtype)

    return jax.tree.map(move, params)


def _parts_of_step(batches: Callable[[int, int], Any], num_parts: int) -> Any:
    """Returns the batches of step 0, stacked as parts, leaves (num_parts, m, ...).

    Raises:
      ValueError: If a batch has no arrays, or the batches of two parts differ in
        structure or shapes.
    """
    validation.check_callable("batches", batches)
    parts = [jax.device_get(batches(0, part)) for part in range(num_parts)]
    if not jax.tree.leaves(parts[0]):
        raise ValueError(
            f"batches must return arrays; got {parts[0]!r} of part 0 in step 0"
        )
    shapes = [shapes_of(part) for part in parts]
    for part, shapes_of_part in enumerate(shapes):
        if shapes_of_part != shapes[0]:
            raise ValueError(
                "batches must return arrays of equal structure and shapes; got "
                f"{shapes[0]} of part 0 and {shapes_of_part} of part {part} in step 0"
            )
    return jax.tree.map(lambda *leaves: np.stack(leaves), *parts)


def _rows_of(parts: Any) -> Any:
    """Concatenates the rows of all parts; raises ValueError without a row axis."""
    if any(np.ndim(leaf) < 2 for leaf in jax.tree.leaves(parts)):
        raise ValueError(
            "batches must return arrays with a leading axis of rows; got "
            f"{shapes_of(jax.tree.map(lambda leaf: leaf[0], parts))}"
        )
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), parts)


def _problem_of_batches(batches: Callable[[int, int], Any], parts: Any) -> str:
    """Returns a problem as text if batches of step 0 are equal or not reproducible.

    Without a problem, returns an empty string.
    """

    def bytes_of_parts(parts):
        """Returns the bytes of each part, to compare parts that contain NaN."""
        columns = [
            [of_part.tobytes() for of_part in leaf] for leaf in jax.tree.leaves(parts)
        ]
        return list(zip(*columns, strict=True))

    first = bytes_of_parts(parts)
    if len(first) > 1 and len(set(first)) == 1:
        return (
            "batches(step=0, part) returns the same arrays for all parts: the gradient "
            "is that of one part. Derive the rows from step and part, e.g. "
            "row = (step * num_parts + part) * rows_per_part"
        )
    again = bytes_of_parts(_parts_of_step(batches, len(first)))
    for part, (once, twice) in enumerate(zip(first, again, strict=True)):
        if once != twice:
            return (
                f"batches(step=0, part={part}) returns other arrays when it is called "
                "again: the holders of a part would differ. Derive all randomness from "
                "step and part, e.g. np.random.default_rng([step, part])"
            )
    return ""
