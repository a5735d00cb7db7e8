"""Looking for the mistakes of a coded step, once, before training."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from jaxwgc import _validation
from jaxwgc.checks._losses import layout_of, measure_decoded, measure_loss
from jaxwgc.checks._mistakes import problems
from jaxwgc.checks._optimizers import (
    OptimizerProbe,
    Rounds,
    is_dropped,
    rounds_of,
    states_of,
)
from jaxwgc.codes import GradientCode
from jaxwgc.gradients import checked_loss, partial_value_and_grad

# How far from the given parameters everything is looked at, relative to their size.
_SHIFT = 0.01


class StepReport(NamedTuple):
    """The problems that `check_step` found; `print` shows them.

    Attributes:
      problems: of each what was measured, what it probably is, and what to do.
      gradient_ratio: norm of the decoded gradient, all workers answering, over that of
        the gradient of the loss on the data.
      gradient_error: norm of their difference, over the same; the larger one of those
        with all workers and without as many as may be lost.
      num_answers: int (rounds,), workers that answered in the rounds that were looked
        at; none without an optimizer, a step or `received`.
      num_undecodable: how many of these rounds could not be decoded.
    """

    problems: tuple[str, ...]
    gradient_ratio: float
    gradient_error: float
    num_answers: np.ndarray
    num_undecodable: int

    @property
    def ok(self) -> bool:
        """True if there are no problems."""
        return not self.problems

    def __str__(self) -> str:
        count = len(self.problems)
        lines = [
            f"{count or 'no'} problem{'' if count == 1 else 's'} found",
            f"decoded gradient: {self.gradient_ratio:.4g} times as long as that of the "
            f"loss on the data, and off by {self.gradient_error:.2g} of it",
        ]
        if len(self.num_answers):
            lines.append(
                f"rounds: {self.num_undecodable} of {len(self.num_answers)} could not "
                f"be decoded, with {self.num_answers.mean():.3g} answers in the mean"
            )
        return "\n".join(lines + [f"- {problem}" for problem in self.problems])


def check_step(
    loss: Callable[..., Any],
    code: GradientCode,
    params: Any,
    parts: Any,
    *,
    data: Any,
    optimizer: optax.GradientTransformation | None = None,
    received: jax.typing.ArrayLike | None = None,
    step: Callable[..., Any] | None = None,
    has_aux: bool = False,
) -> StepReport:
    """Compares a coded step with the gradient on the whole data, and explains.

    Most mistakes of a coded step stay silent: it trains, slower, or to another minimum.
    This looks for them, once, outside of `jax.jit`, with parameters from the start of
    training. The loss must not be random: switch dropout off.

    With the loss alone it finds a mean in the place of a sum over the rows of a part,
    rows that see each other, a regulariser inside of the loss, padding that is not
    weighted, a sample without its weights, and parts that are not those of the data.
    Weights of the code are taken as meant, and weigh the gradient on the data, too.
    With an optimizer besides, transformations before the aggregator, and rounds that
    are not decoded because the model waits for too few, or for another code, or a mask
    is inverted. With a step, a state that is not carried.

    Args:
      loss: `loss(params, part) -> scalar`, which must take parts of any number of rows.
      code: a gradient code.
      params: a pytree of arrays of floats.
      parts: a pytree; leaves (num_parts, m, ...): `(parts, row_weights)` from
        `jaxwgc.partition`, or parts with the structure of data.
      data: a pytree of arrays that share a leading axis of N rows, as it was before
        `jaxwgc.partition`, and before a sample was drawn.
      optimizer: an optax transformation with `jaxwgc.coded_aggregate` or
        `jaxwgc.decode_aggregate` in it. Its `update` may need no extra arguments but
        those of the aggregator.
      received: bool (num_workers,) or (rounds, num_workers), who has answered in real
        rounds, as you would give it to the step.
      step: `step(params, state) -> (params, state, ...)`, your own step with that
        optimizer. It is run a few times, and who answered in these rounds is looked at
        in the place of the optimizer's own.
      has_aux: whether loss returns `(scalar, aux)`.

    Returns:
      A `jaxwgc.checks.StepReport`, with the problems in words.

    Raises:
      ValueError: where shapes do not fit, parts are not like data, or optimizer has not
        one aggregator, for as many workers as the code.
      TypeError: where an argument has the wrong type, or is traced.

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
    everything = code, params, parts, data, received
    _validation.check_concrete("arguments", everything, "check_step looks at values")
    is_right = step is None or optimizer is not None
    _validation.require(is_right, "optimizer", "be given with step", None)
    start, params = params, _perturbed(params)
    _validation.check_leading_axis("parts", parts, code.num_parts, "num_parts")
    layout = layout_of(data, parts)
    coded_gradients = jax.jit(partial_value_and_grad(loss, has_aux))
    gradients = jax.device_get(coded_gradients(params, parts)[1])
    whole_gradient = jax.jit(jax.grad(checked_loss(loss, has_aux), has_aux=True))

    def gradient_of(part):
        return whole_gradient(params, part)[0]

    def advance(params, state):
        return params, probe.update(gradients, state)[1]

    measured = measure_decoded(code, gradients, gradient_of, layout)
    measured |= measure_loss(gradient_of, layout, parts)
    rounds = [] if received is None else [Rounds.observed(code, received)]
    if optimizer is not None:
        probe = OptimizerProbe(optimizer, code, params)
        if step is not None or (received is None and probe.simulates):
            states = states_of(step or advance, start, probe.state)
            rounds.append(rounds_of(states))
        if step is not None:
            measured["is_dropped"] = is_dropped(probe, gradients, *states[:2])
        measured |= probe.measure(gradients, rounds)
    if rounds:
        measured |= max(rounds, key=lambda one: one.failed.mean()).measure(code)
    return StepReport(
        problems(measured),
        gradient_ratio=measured["ratio"],
        gradient_error=measured["error"],
        num_answers=np.array([n for one in rounds for n in one.received.sum(1)], int),
        num_undecodable=sum(int(one.failed.sum()) for one in rounds),
    )


def _perturbed(params):
    """Returns parameters near by: at zero, decay and regularisers may show nothing."""
    draw = np.random.default_rng(0).normal

    def move(leaf):
        leaf = np.asarray(leaf)
        size = np.sqrt(np.mean(np.abs(leaf.astype(complex)) ** 2)) or 1
        return leaf + (_SHIFT * size * draw(size=leaf.shape)).astype(leaf.dtype)

    return jax.tree.map(move, params)
