"""Looking for the mistakes of a coded step, once, before training."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxwgc import _validation, coding
from jaxwgc.checks._layout import layout_of
from jaxwgc.checks._losses import TOLERANCE, LossProbe, flat, norm, sample_problem
from jaxwgc.checks._optimizers import (
    OptimizerProbe,
    rounds_of,
    state_problem,
    states_of,
)
from jaxwgc.checks._rounds import are_undecodable, rounds_problem
from jaxwgc.codes import GradientCode
from jaxwgc.gradients import checked_loss, partial_value_and_grad

# Rounds that are simulated, or steps that are made.
_NUM_ROUNDS = 8
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
    if _validation.is_traced(code, params, parts, data, received):
        raise TypeError(
            "check_step looks at values, so nothing may be traced: call it outside of "
            "jax.jit and the like"
        )
    if step is not None and optimizer is None:
        raise ValueError("optimizer must be given with step; got None")
    start, params = params, _beside(params)
    _validation.check_leading_axis("parts", parts, code.num_parts, "num_parts")
    layout = layout_of(data, parts)
    gradients = jax.jit(partial_value_and_grad(loss, has_aux))(params, parts)[1]
    whole_gradient = jax.jit(jax.grad(checked_loss(loss, has_aux), has_aux=True))

    def gradient_of(part):
        return whole_gradient(params, part)[0]

    probe = LossProbe(gradient_of, layout)
    target = np.asarray(code.target, np.float64)
    rows = layout.rows
    if layout.row_weights is not None and not layout.is_sample:
        # Weights of the user's own are those of the whole data, too.
        weights = layout.row_weights * target[:, None]
        old = layout.rows[1]
        rows = layout.rows[0], jnp.asarray(weights[~layout.is_padding], old.dtype)
    whole = flat(gradient_of(rows))
    length = max(np.linalg.norm(whole), np.finfo(np.float64).tiny)
    # All workers answer, then all but as many as may be lost.
    masks = np.ones((2, code.num_workers), bool)
    masks[1, : code.num_stragglers] = False
    decodings = [coding.decoding(code, mask) for mask in masks]
    decoded = [one.collapse(gradients) for one in decodings]
    vectors = [flat(gradient) for gradient in decoded]
    ratio = float(np.linalg.norm(vectors[0]) / length)
    error = max(float(np.linalg.norm(one - whole)) for one in vectors) / length

    scale = norm(gradients)
    if not scale:
        # There is nothing to compare: the other checks would find nothing wrong.
        problem = (
            "the gradient of every part is zero, so nothing was checked: does loss use "
            "its params? Take others if it is flat where these are"
        )
        return StepReport((problem,), ratio, 0.0, np.zeros(0, int), 0)
    problems = [
        probe.sum_problem(ratio),
        probe.constant_problem(target.sum()),
        probe.padding_problem(parts, scale),
        probe.row_weights_problem(),
    ]
    if not any(problems) and layout.is_sample:
        along = float(np.vdot(whole, vectors[0]).real / length**2)
        problems.append(sample_problem(layout, target, along))
    elif (
        not any(problems)
        # Approximate codes promise nothing, and weights of parts that are not those of
        # rows have no loss on the data.
        and (code.num_stragglers or not decodings[0].failed())
        and (layout.row_weights is not None or (target == 1).all())
    ):
        # The gradients of the parts may nearly cancel.
        if not error * length <= TOLERANCE * max(length, scale):
            problems.append(
                "the decoded gradient is not that of the loss on the data: off by "
                f"{error:.2g} of it, with at most {code.num_stragglers} workers lost. "
                "Are these the parts of these data, and does the code decode "
                "(jaxwgc.studies.diagnose)?"
            )

    rounds = []
    if received is not None:
        masks = np.atleast_2d(received)
        rounds.append((masks, are_undecodable(code, masks), None))
    if optimizer is not None:
        runner = OptimizerProbe(optimizer, code, params)
        problems += runner.order_problems(decoded[0])
        if step is not None:
            states = states_of(_checked(step), start, runner.state, _NUM_ROUNDS)
            problems.append(state_problem(runner, gradients, *states[:2]))
            rounds.append(rounds_of(states))
        elif received is None and runner.simulates:
            states = states_of(
                lambda params, state: (params, runner.update(gradients, state)[1]),
                params,
                runner.state,
                _NUM_ROUNDS,
            )
            rounds.append(rounds_of(states))
    problems += [rounds_problem(code, *one) for one in rounds]
    return StepReport(
        problems=tuple(filter(None, problems)),
        gradient_ratio=ratio,
        gradient_error=error,
        num_answers=np.array([n for one in rounds for n in one[0].sum(1)], int),
        num_undecodable=sum(int(one[1].sum()) for one in rounds),
    )


def _beside(params):
    """Parameters near by: at zero, decay, regularisers and padding may show nothing."""
    draw = np.random.default_rng(0).normal

    def move(leaf):
        leaf = jnp.asarray(leaf)
        size = jnp.sqrt(jnp.mean(jnp.abs(leaf) ** 2))
        step = _SHIFT * jnp.where(size > 0, size, 1) * draw(size=leaf.shape)
        return leaf + step.astype(leaf.dtype)

    return jax.tree.map(move, params)


def _checked(step):
    """`step`, whose result must begin with parameters and a state."""
    _validation.check_callable("step", step)

    def checked(params, state):
        result = step(params, state)
        if not (isinstance(result, tuple) and len(result) >= 2):
            raise TypeError(
                "step must return (params, state, ...); got "
                f"{jax.tree.structure(result)}"
            )
        return result[:2]

    return checked
