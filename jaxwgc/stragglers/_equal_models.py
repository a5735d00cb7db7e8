"""Equal arguments give the same model."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from jaxwgc import _validation

T = TypeVar("T", bound=Callable[..., Any])


def equal_models(constructor: T) -> T:
    """A constructor that gives the same object again for the same plain arguments.

    Models are pairs of functions, which JAX tells apart by identity: what is compiled
    with one as a static argument, or with its functions inside, then serves all that
    are equal. Arguments that cannot be hashed (arrays) give a new model every time, and
    so do traced ones, which must not outlive their trace.
    """
    signature = inspect.signature(constructor)
    remembered = functools.lru_cache(maxsize=256, typed=True)(constructor)

    @functools.wraps(constructor)
    def construct(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        try:
            hash(bound.args)
            is_plain = not _validation.is_traced(bound.args)
        except TypeError:
            is_plain = False
        return (remembered if is_plain else constructor)(*bound.args, **bound.kwargs)

    return construct  # pyright: ignore[reportReturnType]
