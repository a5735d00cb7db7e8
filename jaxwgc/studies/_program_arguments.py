"""Delay models and waiting rules as arguments of compiled programs."""

import dataclasses
from typing import Any

import jax

from jaxwgc._pytrees import Static, register
from jaxwgc.stragglers import DelayModel


@register
@dataclasses.dataclass(frozen=True)
class _Constant:
    """Delay model or rule that is not a pytree: each has its own program."""

    model: Static[Any]


def as_pytree(model: Any) -> Any:
    """Returns a delay model or waiting rule as a pytree."""
    return _Constant(model) if jax.tree_util.all_leaves([model]) else model


def from_pytree(tree: Any) -> Any:
    """Returns the delay model or waiting rule that was given to `as_pytree`."""
    return tree.model if isinstance(tree, _Constant) else tree


class DrawnTimes(DelayModel):
    """Delay model that returns its state as times.

    With it, `delayed` applies a waiting rule to times that were drawn before.
    """

    def sample(self, key, state, loads):
        """Returns the state as times of the round."""
        return state, state
