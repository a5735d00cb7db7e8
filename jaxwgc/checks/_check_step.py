"""Comparison of a coded step with the gradient on the whole data."""

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from jaxwgc import coding
from jaxwgc._common import array_validation, validation
from jaxwgc.aggregate._policy import shapes_of
from jaxwgc.checks._optimizers import OptimizerProbe, Rounds, flat, states_of
from jaxwgc.codes import GradientCode
from jaxwgc.gradients import partial_value_and_grad
from jaxwgc.gradients._gradients import checked_loss
from jaxwgc.parts import partition

# Relative rounding error of a gradient, also in bfloat16.
TOLERANCE = 0.02
# Random shift of the parameters before measurements, relative to their size.
_SHIFT = 0.01
# Maximum error of the total weight of a sample, in standard errors.
_STANDARD_ERRORS = 4
# Replaces a norm of zero in a denominator.
_TINY = 1e-150


class StepReport(NamedTuple):
    """Problems that `check_step` found, to print; `check_step` documents the fields."""

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
      A report, to print. `ok` is True if no problems were found, and `problems` is a
      tuple of texts: what was measured, its likely cause, what to do. `gradient_ratio`
      is the norm of the decoded gradient if all workers respond, over the norm of the
      gradient of the loss on the data. `gradient_error` is the norm of their
      difference, relative to the latter: the maximum over two rounds, of all workers,
      and of all but as many as the code tolerates. With `batches` and no `whole_loss`,
      the latter is scaled to the norm of the former. For a sample of parts, the data
      are its own rows. `num_answers` is the number of workers that responded in each
      tested round, int (rounds,), empty without an optimizer, a step or `received`, and
      `num_undecodable` the number of these rounds that could not be decoded.

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
      the sum over the parts differs from the gradient of the loss on the data
    """
    GradientCode.check(code)
    if batches is None:
        if parts is None or data is None:
            raise ValueError("parts and data must both be given without batches")
    else:
        if parts is not None or data is not None:
            raise ValueError("parts and data must be None with batches")
        parts = _parts_of_step(batches, code.num_parts)
        data = _rows_of(parts)
    array_validation.check_concrete(
        "arguments",
        (code, params, parts, data, received),
        "check_step looks at values",
    )
    if step is not None and optimizer is None:
        raise ValueError("optimizer must be given with step; got None")
    if whole_loss is not None:
        validation.check_callable("whole_loss", whole_loss)
    array_validation.check_leading_axis("parts", parts, code.num_parts, "num_parts")
    layout = _Layout.of(data, parts)
    shifted = _perturbed(params)
    partial = jax.jit(partial_value_and_grad(loss, has_aux))
    gradients = jax.device_get(partial(shifted, parts)[1])
    gradient_and_aux = jax.jit(jax.grad(checked_loss(loss, has_aux), has_aux=True))

    def gradient_of(part):
        return flat(gradient_and_aux(shifted, part)[0])

    gradient_on_data = gradient_of
    if whole_loss is not None:
        gradient_of_whole = jax.jit(jax.grad(whole_loss))

        def gradient_on_data(part):
            return flat(gradient_of_whole(shifted, part))

    comparison = _compare(
        code,
        gradients,
        layout,
        gradient_on_data,
        is_whole_loss=whole_loss is not None,
        any_factor=batches is not None and whole_loss is None,
    )
    problems = [comparison.problem(layout, gradient_of)]
    rounds: list[Rounds] = []
    if received is not None:
        rounds.append(Rounds.observed(code, received))
    if optimizer is not None:
        probe = OptimizerProbe(optimizer, code, shifted)
        problems.append(probe.problem_of_order(gradients))
        if step is not None:
            states = states_of(step, params, probe.state)
            problems.append(probe.problem_of_state(gradients, states[0], states[1]))
            rounds.append(Rounds.between(states))
        elif received is None and probe.simulates:
            rounds.append(probe.simulated_rounds(gradients))
    problems.extend(observed.problem(code) for observed in rounds)
    if batches is not None:
        problems.append(_problem_of_batches(batches, parts))
    counts = [observed.received.sum(1) for observed in rounds]
    return StepReport(
        problems=tuple(problem for problem in problems if problem),
        gradient_ratio=comparison.ratio,
        gradient_error=comparison.error,
        num_answers=np.concatenate([np.zeros(0, int), *counts]),
        num_undecodable=sum(int(observed.failed.sum()) for observed in rounds),
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


class _Layout(NamedTuple):
    """Rows of the data and of the parts, on the host.

    Attributes:
      data: Rows of the data, leaves (N, ...).
      num_rows: N.
      parts: Rows of the parts, leaves (num_parts, m, ...).
      row_weights: (num_parts, m); 0 for padding.
      dtype: Dtype of the row weights that the loss takes; None if it takes rows alone.
    """

    data: Any
    num_rows: int
    parts: Any
    row_weights: np.ndarray
    dtype: np.dtype | None

    @classmethod
    def of(cls, data: Any, parts: Any) -> "_Layout":
        """Returns the layout of `(parts, row_weights)`, or of parts like the data."""
        data = jax.device_get(data)
        parts = jax.device_get(parts)
        num_rows = array_validation.check_parts("data", data, "N")
        leaves = jax.tree.leaves(parts)
        has_rows = all(np.ndim(leaf) > 1 for leaf in leaves)
        structure = jax.tree.structure(parts)
        if has_rows and structure == jax.tree.structure((data, 0)):
            rows, row_weights = parts
            in_double = row_weights.astype(np.float64)
            return cls(data, num_rows, rows, in_double, row_weights.dtype)
        if not has_rows or structure != jax.tree.structure(data):
            raise ValueError(
                "parts must be (parts, row_weights) of jaxwgc.partition(data, "
                f"num_parts), or like data; got {shapes_of(parts)} and data "
                f"{shapes_of(data)}"
            )
        row_weights = np.asarray(partition(np.ones(num_rows), len(leaves[0]))[1])
        if row_weights.shape != np.shape(leaves[0])[:2]:
            # Parts that are not from `partition` have unknown padding.
            row_weights = np.ones(np.shape(leaves[0])[:2])
        return cls(data, num_rows, parts, row_weights, None)

    @property
    def is_held(self) -> np.ndarray:
        """Which rows of the parts are not padding, bool (num_parts, m)."""
        return self.row_weights != 0

    @property
    def is_sample(self) -> bool:
        """Whether parts hold fewer or more rows than the data."""
        return self.is_held.sum() != self.num_rows

    @property
    def marks_padding(self) -> bool:
        """Whether row weights are nothing but 1, or 0 for padding."""
        return bool(np.isin(self.row_weights, (0, 1)).all())

    def rows(self, is_chosen: np.ndarray) -> Any:
        """Returns rows of the parts, given bool (num_parts, m)."""
        return jax.tree.map(operator.itemgetter(is_chosen), self.parts)

    def as_part(self, rows: Any, row_weights: np.ndarray) -> Any:
        """Returns rows with weights in the form that the loss takes."""
        return rows if self.dtype is None else (rows, row_weights.astype(self.dtype))


class _Comparison(NamedTuple):
    """The decoded gradient and the gradient on the data, in double precision.

    Attributes:
      code: Gradient code.
      of_parts: Partial gradients, (num_parts, size).
      total: Their sum with the weights of the code, (size,).
      expected: Gradient on the data, (size,).
      decoded: Decoded gradients if all workers respond, and if as many straggle as the
        code tolerates, (2, size).
      ratio: Norm of the first decoded gradient, relative to the gradient on the data.
      has_loss: Whether `total` should be `expected`.
      is_exact: Whether `decoded` should be `total`.
    """

    code: GradientCode
    of_parts: np.ndarray
    total: np.ndarray
    expected: np.ndarray
    decoded: np.ndarray
    ratio: float
    has_loss: bool
    is_exact: bool

    @property
    def error(self) -> float:
        """Largest relative error of the decoded gradients."""
        errors = np.linalg.norm(self.decoded - self.expected, axis=1)
        return float(errors.max() / max(np.linalg.norm(self.expected), _TINY))

    def problem(self, layout: _Layout, gradient_of: Callable[[Any], np.ndarray]) -> str:
        """Returns the first problem of the gradients; "" if there is none.

        Args:
          layout: Rows of the data and of the parts.
          gradient_of: `gradient_of(part)`, for parts with any number of rows.
        """
        if not self.of_parts.any():
            return (
                "the gradient of every part is zero: does loss use its params? Take "
                "other params if the loss is flat at these"
            )
        norms_of_parts = np.linalg.norm(self.of_parts, axis=1)
        [not_finite] = np.nonzero(~np.isfinite(norms_of_parts))
        if len(not_finite) or not np.isfinite(self.expected).all():
            place = "the whole data"
            if len(not_finite):
                place = f"{len(not_finite)} of {len(norms_of_parts)} parts"
            return (
                f"the gradient is NaN or infinite for {place}. Are the parts, their "
                'row weights and params finite? jax.config.update("jax_debug_nans", '
                "True) finds the operation. If it is in rows of weight 0, select "
                "before you compute: jnp.where(row_weights > 0, x, 1) in place of x"
            )
        added = _gradient_of_weight_zero(layout, gradient_of)
        if 1e-6 * np.linalg.norm(norms_of_parts) < added < np.inf:
            return (
                "the row weights are not used: rows of weight 0, such as padding, add "
                f"a gradient of norm {added:.3g}. Multiply the loss of each row by its "
                "row weight (from jaxwgc.partition, or from "
                "jaxwgc.parts.weighted_parts), as in jnp.sum(row_weights * ...)"
            )
        # Squares of the terms of the sum add up if the terms are independent.
        terms = np.asarray(self.code.target) * norms_of_parts
        rounding = TOLERANCE * max(np.linalg.norm(self.expected), np.linalg.norm(terms))
        difference = np.linalg.norm(self.total - self.expected)
        if self.has_loss and not difference <= rounding:
            return (
                "the sum over the parts differs from the gradient of the loss on the "
                f"data: it is {self.ratio:.3g} times as long, relative error "
                f"{self.error:.2g}. Does the loss take a mean over the rows of a part "
                f"({self.code.num_parts} times as long; Adam hides it)? Return "
                "jnp.sum(row_weights * ...). Does it have a regulariser, which counts "
                "once per part? Divide it by the number of parts, and pass whole_loss. "
                "Rows must not interact (batch normalisation, a square root or "
                "logarithm of the total), and the loss must not draw random numbers "
                "(dropout). Are these the parts of these data?"
            )
        difference = np.linalg.norm(self.decoded - self.total)
        if self.is_exact and not difference <= rounding:
            return (
                "the decoded gradient differs from the sum over the parts: relative "
                f"error {self.error:.2g}, with at most {self.code.num_stragglers} "
                "stragglers. Does jaxwgc.simulation.diagnose(code) fail?"
            )
        return _problem_of_sample(self, layout, gradient_of)


def _compare(
    code: GradientCode,
    gradients: Any,
    layout: _Layout,
    gradient_on_data: Callable[[Any], np.ndarray],
    *,
    is_whole_loss: bool,
    any_factor: bool,
) -> _Comparison:
    """Compares the decoded gradient of all parts with the gradient on the data.

    Args:
      code: Gradient code.
      gradients: Partial gradients, leaves (num_parts, ...).
      layout: Rows of the data and of the parts.
      gradient_on_data: `gradient_on_data(rows)`, the gradient on all rows.
      is_whole_loss: Whether this is the gradient of a loss for the whole data, and not
        that of the loss for parts.
      any_factor: Whether a constant positive factor is no error.
    """
    by_part = [
        flat(jax.tree.map(operator.itemgetter(part), gradients))
        for part in range(code.num_parts)
    ]
    of_parts = np.stack(by_part)
    target = np.asarray(code.target, np.float64)
    total = target @ of_parts
    has_weights = bool((target != 1).any())
    # A sample is compared with the loss on its own rows.
    rows = layout.rows(layout.is_held) if layout.is_sample else layout.data
    # Weights of the code may average the losses of the parts, or be weights of rows. A
    # loss for the whole data says what is meant. Row weights of the user also apply to
    # the whole data.
    choices = [layout.row_weights]
    if has_weights and not is_whole_loss:
        choices.append(target[:, None] * layout.row_weights)
    candidates = [
        gradient_on_data(layout.as_part(rows, row_weights[layout.is_held]))
        for row_weights in choices
    ]
    expected = min(candidates, key=lambda gradient: np.linalg.norm(total - gradient))
    num_lost = np.array([[0], [code.num_stragglers]])
    decoding = coding.decoding(code, np.arange(code.num_workers) >= num_lost)
    decoded = np.asarray(decoding.effective_weights, np.float64) @ of_parts
    length = max(np.linalg.norm(expected), _TINY)
    ratio = float(np.linalg.norm(decoded[0]) / length)
    if any_factor:
        expected = expected * (np.linalg.norm(total) / length)
    # With weights of parts that are not row weights, no loss has the decoded gradient.
    has_loss = layout.dtype is not None or not has_weights
    if is_whole_loss:
        has_loss = not layout.is_sample
    return _Comparison(
        code=code,
        of_parts=of_parts,
        total=total,
        expected=expected,
        decoded=decoded,
        ratio=ratio,
        has_loss=has_loss,
        # Approximate codes do not guarantee the exact gradient.
        is_exact=bool(code.num_stragglers > 0 or not decoding.failed()[0]),
    )


def _gradient_of_weight_zero(
    layout: _Layout, gradient_of: Callable[[Any], np.ndarray]
) -> float:
    """Returns the norm of the gradient that rows of weight 0 add.

    The comparison on the data may not show it: at the start, that of padding is small.
    """
    is_chosen = ~layout.is_held
    if not layout.marks_padding:
        is_chosen = np.ones_like(is_chosen)
    rows = layout.rows(is_chosen)
    numbers = np.arange(is_chosen.sum())
    if len(numbers) == 0:
        return 0.0

    def gradient(numbers):
        chosen = jax.tree.map(operator.itemgetter(numbers), rows)
        return gradient_of(layout.as_part(chosen, np.zeros(len(numbers))))

    # A regulariser does not depend on the number of rows.
    twice = gradient(np.tile(numbers, 2))
    return float(np.linalg.norm(twice - gradient(numbers)))


def _problem_of_sample(
    comparison: _Comparison,
    layout: _Layout,
    gradient_of: Callable[[Any], np.ndarray],
) -> str:
    """Returns a problem if the weights of a sample do not represent all rows."""
    if not layout.is_sample:
        return ""
    # Each part gives an estimate of the number of rows, relative to the true number.
    sums = layout.row_weights.sum(1)
    shares = np.asarray(comparison.code.target) * sums / layout.num_rows
    represented = shares.sum()
    spread = np.std(shares)
    deviation = spread * np.sqrt(len(shares))
    if layout.marks_padding:
        # The rows themselves may be scaled, instead of their weights.
        on_data = gradient_of(layout.as_part(layout.data, np.ones(layout.num_rows)))
        along = np.vdot(on_data, comparison.total).real / np.vdot(on_data, on_data).real
        is_weighted = abs(along - 1) <= abs(along - represented)
        is_weighted |= abs(represented - 1) <= TOLERANCE
    else:
        # If weights differ much, the parts with the largest ones may be missing.
        unseen = spread / (2 * abs(shares.mean()))
        allowed = TOLERANCE + _STANDARD_ERRORS * deviation + unseen
        is_weighted = abs(represented - 1) <= allowed
    if is_weighted:
        return ""
    return (
        f"a sample without its weights: the parts hold {layout.is_held.sum()} of "
        f"{layout.num_rows} rows, which represent {represented:.3g} times all "
        f"(standard error {deviation:.2g}). Take parts and row_weights from "
        "jaxwgc.parts.weighted_parts, and pass its weights to jaxwgc.weighted(code, "
        "weights)"
    )


def _parts_of_step(batches: Callable[[int, int], Any], num_parts: int) -> Any:
    """Returns the batches of step 0 as parts, leaves (num_parts, ...).

    Raises:
      ValueError: If the batches of two parts differ in structure or shapes.
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
    """Returns the rows of all parts, leaves (num_parts * m, ...)."""
    if any(np.ndim(leaf) < 2 for leaf in jax.tree.leaves(parts)):
        raise ValueError(
            "batches must return arrays with a leading axis of rows; got "
            f"{shapes_of(jax.tree.map(lambda leaf: leaf[0], parts))}"
        )
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), parts)


def _problem_of_batches(batches: Callable[[int, int], Any], parts: Any) -> str:
    """Returns a problem if batches of step 0 are equal, or change from call to call."""

    def bytes_of_parts(parts):
        """Returns the bytes of each part, so that NaNs are equal, too."""
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
