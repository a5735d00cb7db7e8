"""The state of `Refinement`, and the step from one state to the next."""

from typing import NamedTuple

from jax import Array

from jaxwgc._common.conjugate_gradients import CGState
from jaxwgc.sketching._linalg.monitor import Monitor
from jaxwgc.sketching._linalg.points import Point


class State(NamedTuple):
    """State of the iterations of each system.

    Attributes:
      point: The current x, and its recomputed residual.
      s: Pᵀ times the gradient of the point, where P is the preconditioner.
      cg: The state of conjugate gradients. Its s is updated, not recomputed.
      replaced_gamma: ‖s‖² at the last replacement of the updated s.
      alpha: The length of the last step, 1 before the first one.
      decrease: The decrease of ‖r‖² in the last step that was not damped.
      damping: ω² of damped steps, 0 until the point is solved.
      is_solved: Whether the point is backward stable, with a residual near its minimum.
      best_x: The x of the smallest backward error.
      least_error: The smallest backward error.
      monitor: Its history holds ‖r‖.
    """

    point: Point
    s: Array
    cg: CGState
    replaced_gamma: Array
    alpha: Array
    decrease: Array
    damping: Array
    is_solved: Array
    best_x: Array
    least_error: Array
    monitor: Monitor


class Step(NamedTuple):
    """The end of a step of conjugate gradients.

    Attributes:
      point: The point, with its recomputed residual.
      s: Pᵀ times the gradient of the point.
      updated: The state of conjugate gradients, whose s is updated.
      alpha: The length of the step.
      error: The backward error of the point, infinite if its residual is lost.
      updated_error: The backward error according to the updated s.
    """

    point: Point
    s: Array
    updated: CGState
    alpha: Array
    error: Array
    updated_error: Array


class Outcome(NamedTuple):
    """The outcome of the tests of a step.

    Attributes:
      tolerance: The backward error that ends the iterations.
      decrease: See `State`.
      damping: See `State`.
      is_solved: See `State`.
      is_replaced: Whether the recomputed s replaces the updated one.
      is_better: Whether the backward error is the smallest so far.
      is_kept: Whether the step is kept. Otherwise, it is undone and the iterations end.
      may_stop: Whether the iterations end if the backward error is within `tolerance`.
    """

    tolerance: Array
    decrease: Array
    damping: Array
    is_solved: Array
    is_replaced: Array
    is_better: Array
    is_kept: Array
    may_stop: Array
