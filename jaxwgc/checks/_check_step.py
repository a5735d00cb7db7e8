"""Checks of a coded step before training."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from jaxwgc._common import array_validation, validation
from jaxwgc.checks._batches import parts_of_step, problems_of_batches, rows_of
from jaxwgc.checks._losses import layout_of, measure_decoded, measure_loss
from jaxwgc.checks._measures import Measures
from jaxwgc.checks._mistakes import problems
from jaxwgc.checks._optimizers import (
    MaskedRounds,
    OptimizerProbe,
    is_dropped,
    rounds_of,
    states_of,
)
from jaxwgc.codes import GradientCode
from jaxwgc.gradients import checked_loss, partial_value_and_grad

# Random shift of the parameters before measurements, relative to their size.
_SHIFT = 0.01


class StepReport(NamedTuple):
    """Problems that `check_step` found; printed by `print`.

    Attributes:
      problems: For each problem: what was measured, its likely cause, what to do.
      gradient_ratio: Norm of the decoded gradient if all workers respond, over the
        norm of the gradient of the loss on the data.
      gradient_error: Norm of their difference, relative to the latter. The maximum over
        two rounds: all workers, and all but as many as the code tolerates. With
        `batches` and no `whole_loss`, the latter is scaled to the norm of the former.
      num_answers: Number of workers that responded in each tested round, int (rounds,);
        empty without an optimizer, a step or `received`.
      num_undecodable: Number of these rounds that could not be decoded.

    Example:
      >>> import jax, jax.numpy as jnp, jaxwgc
      >>> x = jax.random.normal(jax.random.key(0), (100, 3))
      >>> def loss(params, part):
      ...     x, row_weights = part
      ...     return jnp.sum(row_weights * (x @ params["w"] - 1) ** 2)
      >>> parts = jaxwgc.partition(x, num_parts=4)
      >>> code = jaxwgc.codes.fractional_repetition(4, num_stragglers=1)
      >>> report = jaxwgc.check_step(loss, code, {"w": jnp.ones(3)}, parts, data=x)
      >>> report.ok, round(report.gradient_ratio, 3), report.gradient_error < 1e-3
      (True, 1.0, True)
      >>> print(str(report).splitlines()[0])
      no problems found
    """

    problems: tuple[str, ...]
    gradient_ratio: float
    gradient_error: float
    num_answers: np.ndarray
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
            f"decoded gradient: {self.gradient_ratio:.4g} times as long as that of the "
            f"loss on the data, relative error {self.gradient_error:.2g}",
        ]
        if len(self.num_answers):
            lines.append(
                f"rounds: {self.num_undecodable} of {len(self.num_answers)} could not "
                f"be decoded, with {self.num_answers.mean():.3g} responses on average"
            )
        for problem in self.problems:
            lines.append(f"- {problem}")
        return "\n".join(lines)


def check_step(
    loss: Callable[..., Any],
    code: GradientCode,
    params: Any,
    parts: Any = None,
    *,
    data: Any = None,
    batches: Callable[[int, int], Any] | None = None,
    optimizer: optax.GradientTransformation | None = None,
    received: jax.typing.ArrayLike | None = None,
    step: Callable[..., Any] | None = None,
    has_aux: bool = False,
    whole_loss: Callable[..., Any] | None = None,
) -> StepReport:
    """Compares a coded step with the gradient on the whole data, and names mistakes.

    Most mistakes in a coded step raise no error: training is slower, or converges to
    another minimum. Call this once, outside of `jax.jit`, with parameters from the
    start of training. The loss must be deterministic: switch dropout off.

    - With the loss alone it detects: a mean in place of a sum over the rows of a part;
      rows that interact; a regulariser that counts once per part; padding without
      weights; a sample without its weights; parts that are not from the data; gradients
      that are not finite. If the decoded gradient is that on the whole data, a mean, a
      regulariser and rows that interact are no problem.
      Differences of the gradients of less than 2% count as rounding.
    - With an optimizer it also detects: transformations before the aggregator; rounds
      that cannot be decoded because the model waits for too few workers or for another
      code, or because a mask is inverted.
    - With a step it also detects a state that is not passed on.
    - With `batches` it also detects batches that differ from call to call.

    The gradient on the whole data is that of `loss` on all rows at once. A loss that
    is divided by the number of parts is smaller there: pass the undivided loss as
    `whole_loss`. With `batches` and no `whole_loss`, a constant factor is no problem.

    Weights of the code may average the parts, e.g. 1/num_parts for a loss that is a
    mean. They may also be weights of rows, and are then applied to all rows.

    Args:
      loss: `loss(params, part) -> scalar`, for parts with any number of rows.
      code: Gradient code.
      params: Pytree of float arrays.
      parts: Pytree with leaves (num_parts, m, ...): `(parts, row_weights)` from
        `jaxwgc.partition`, or parts with the structure of data.
      data: Pytree of arrays with a leading axis of N rows, before `jaxwgc.partition`
        or sampling.
      batches: `batches(step, part)` of a `jaxwgc.distributed.RayCluster`, in the place
        of `parts` and `data`: pytree with leaves (m, ...). Parts are the batches of
        step 0, and the data are their rows.
      optimizer: Optax transformation that contains `jaxwgc.coded_aggregate` or
        `jaxwgc.decode_aggregate`. Its `update` must not need extra arguments of other
        transformations.
      received: Which workers responded in real rounds, bool (num_workers,) or
        (rounds, num_workers), as passed to the step.
      step: `step(params, state) -> (params, state, ...)`, your own step with that
        optimizer. It is run a few times. Responses in these rounds replace simulated
        ones.
      has_aux: Whether `loss` returns `(scalar, aux)`.
      whole_loss: `whole_loss(params, rows) -> scalar`, the loss that training should
        minimise, for all rows in the form of one part. By default, this is `loss`.

    Returns:
      A `jaxwgc.checks.StepReport`, with the problems in words.

    Raises:
      ValueError: If not either `parts` and `data` or `batches` are given, shapes do not
        match, parts are not like data, batches are not alike, or optimizer does not
        have exactly one aggregator, with as many workers as the code.
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
      loss is a mean over the rows of a part
    """
    GradientCode.check(code)
    changing: tuple[str, ...] = ()
    if batches is None:
        if parts is None or data is None:
            raise ValueError("parts and data must both be given without batches")
    else:
        if parts is not None or data is not None:
            raise ValueError("parts and data must be None with batches")
        parts = parts_of_step(batches, code.num_parts)
        data = rows_of(parts)
        changing = problems_of_batches(batches, parts)
    array_validation.check_concrete(
        "arguments",
        (code, params, parts, data, received),
        "check_step looks at values",
    )
    if step is not None and optimizer is None:
        raise ValueError("optimizer must be given with step; got None")
    start = params
    params = _perturbed(params)
    array_validation.check_leading_axis("parts", parts, code.num_parts, "num_parts")
    layout = layout_of(data, parts)
    coded_gradients = jax.jit(partial_value_and_grad(loss, has_aux))
    gradients = jax.device_get(coded_gradients(params, parts)[1])
    gradient_and_aux = jax.jit(jax.grad(checked_loss(loss, has_aux), has_aux=True))

    def gradient_of(part):
        return gradient_and_aux(params, part)[0]

    gradient_on_data = gradient_of
    if whole_loss is not None:
        validation.check_callable("whole_loss", whole_loss)
        gradient_on_data = functools.partial(jax.jit(jax.grad(whole_loss)), params)
    measures = Measures(
        gradient=measure_decoded(
            code,
            gradients,
            gradient_on_data,
            layout,
            is_whole_loss=whole_loss is not None,
            any_factor=batches is not None and whole_loss is None,
        ),
        loss=measure_loss(gradient_of, layout, parts),
    )
    rounds: list[MaskedRounds] = []
    if received is not None:
        rounds.append(MaskedRounds.observed(code, received))
    if optimizer is not None:
        probe = OptimizerProbe(optimizer, code, params)
        if step is not None:
            states = states_of(step, start, probe.state)
            rounds.append(rounds_of(states))
            measures = measures._replace(
                is_dropped=is_dropped(
                    probe, gradients, before=states[0], after=states[1]
                )
            )
        elif received is None and probe.simulates:
            rounds.append(_simulated_rounds(probe, gradients, start))
        measures = measures._replace(order=probe.measure(gradients))
    if rounds:
        worst = max(rounds, key=lambda masked: masked.failed.mean())
        measures = measures._replace(rounds=worst.measure(code))
    counts = [masked.received.sum(1) for masked in rounds]
    return StepReport(
        problems(measures) + changing,
        gradient_ratio=measures.gradient.ratio,
        gradient_error=measures.gradient.error,
        num_answers=np.concatenate([np.zeros(0, int), *counts]),
        num_undecodable=sum(int(masked.failed.sum()) for masked in rounds),
    )


def _simulated_rounds(
    probe: OptimizerProbe, gradients: Any, params: Any
) -> MaskedRounds:
    """Returns rounds that the optimizer simulates, at fixed parameters."""

    def advance(params, state):
        _, state = probe.update(gradients, state)
        return params, state

    return rounds_of(states_of(advance, params, probe.state))


def _perturbed(params: Any) -> Any:
    """Returns randomly shifted parameters, so that weight decay has an effect."""
    generator = np.random.default_rng(0)

    def move(leaf):
        leaf = np.asarray(leaf)
        size = np.sqrt(np.mean(np.abs(leaf.astype(complex)) ** 2)) or 1
        shift = _SHIFT * size * generator.normal(size=leaf.shape)
        return leaf + shift.astype(leaf.dtype)

    return jax.tree.map(move, params)
