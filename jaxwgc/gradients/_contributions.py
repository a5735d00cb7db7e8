"""Functions that compute the term that a part contributes to the decoded sum."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from jaxwgc._common import validation
from jaxwgc._common.leaves import by_name, difference
from jaxwgc.gradients._gradients import checked_loss


class Term(NamedTuple):
    """Result for one part: its term of the decoded sum, its loss and its aux.

    Attributes:
      value: Term of the sum, a pytree like params.
      loss: Loss of the part; NaN for a contribution, which has no loss.
      aux: Second result of the user's function, a pytree; None without aux.
    """

    value: Any
    loss: jax.Array
    aux: Any


# `term(params, part, key)` returns the `Term` of a part. The key is None if the
# function takes no key.
TermFunction: TypeAlias = Callable[[Any, Any, jax.Array | None], Term]


def term_of(
    loss: Callable[..., Any] | None = None,
    contribution: Callable[..., Any] | None = None,
    has_aux: bool = False,
) -> TermFunction:
    """Returns a function that computes a part's term, from a loss or a contribution.

    The term is the gradient of the loss, or the contribution.

    Raises:
      ValueError: Unless exactly one of loss and contribution is given.
      TypeError: If it is not a function, or has_aux is not a bool.
    """
    check_alternatives(loss, contribution)
    if contribution is not None:
        return _contribution_term(contribution, has_aux)
    assert loss is not None
    return _gradient_term(loss, has_aux)


def check_alternatives(
    loss: Callable[..., Any] | None, contribution: Callable[..., Any] | None
) -> None:
    """Raises ValueError unless exactly one of loss and contribution is given."""
    if loss is not None and contribution is not None:
        raise ValueError("loss or contribution= must be given; got both. Omit one")
    if loss is None and contribution is None:
        raise ValueError("loss or contribution= must be given; got neither")


def check_key_is_used(
    key: jax.Array | None,
    batch: Callable[..., Any] | None,
    contribution: Callable[..., Any] | None,
) -> None:
    """Raises ValueError if `key` is needed but missing, or given but not used."""
    if batch is not None:
        validation.check_callable("batch", batch)
    is_needed = batch is not None
    if contribution is not None:
        validation.check_callable("contribution", contribution)
        is_needed |= takes("key", contribution)
    if is_needed and key is None:
        raise ValueError(
            "batch=, and a contribution with an argument key, need key=; got key=None. "
            "Pass e.g. key=jax.random.key(0)"
        )
    if key is not None and not is_needed:
        raise ValueError(
            "key= is used only by batch=, and by a contribution with an argument key; "
            f"got key={key} and neither of them. Omit key=, or pass "
            "contribution(params, part, key)"
        )


def _gradient_term(loss: Callable[..., Any], has_aux: bool) -> TermFunction:
    """Returns a function that computes the gradient of a loss on a part."""
    checked = checked_loss(loss, has_aux)

    def term(params, part, key):
        (value, aux), gradient = jax.value_and_grad(checked, has_aux=True)(params, part)
        return Term(value=gradient, loss=value, aux=aux)

    return term


def _contribution_term(contribution: Callable[..., Any], has_aux: bool) -> TermFunction:
    """Returns a function that computes the contribution of a part, and checks it."""
    validation.check_callable("contribution", contribution)
    validation.check_bool("has_aux", has_aux)
    is_keyed = takes("key", contribution)

    def term(params, part, key):
        if is_keyed:
            value = contribution(params, part, key=key)
        else:
            value = contribution(params, part)
        aux = None
        if has_aux:
            if not (isinstance(value, tuple) and len(value) == 2):
                raise ValueError(
                    "contribution must return (pytree like params, aux) if "
                    f"has_aux=True; got {jax.tree.structure(value)}"
                )
            value, aux = value
        return Term(value=_like(params, value), loss=jnp.float32(jnp.nan), aux=aux)

    return term


def key_of_batch(key: jax.Array, step: Any, index: Any) -> jax.Array:
    """Returns the key of a part's batch in a step, the same on all workers."""
    return jax.random.fold_in(jax.random.fold_in(key, step), index)


def key_of_term(key: jax.Array, step: Any, index: Any) -> jax.Array:
    """Returns the key of a part's contribution in a step, the same on all workers."""
    return jax.random.fold_in(key_of_batch(key, step, index), 1)


def takes(argument: str, function: Callable[..., Any]) -> bool:
    """Returns whether a function has an argument of a given name."""
    try:
        return argument in inspect.signature(function).parameters
    except ValueError:
        # `inspect` finds no signature for some functions that are written in C.
        return False


def _like(params: Any, value: Any) -> Any:
    """Converts a contribution to arrays; raises ValueError if it is not like params."""
    value = jax.tree.map(jnp.asarray, value)
    differs = difference(
        by_name("params", params),
        by_name("params", value),
        text="{now} in place of {before}",
    )
    structure = jax.tree.structure(value)
    if not differs and structure != jax.tree.structure(params):
        differs = str(structure)
    if differs:
        raise ValueError(
            "contribution must return a pytree with the structure, shapes and dtypes "
            f"of params; got a result with {differs}. Return other quantities as aux, "
            "with has_aux=True"
        )
    return value
