"""The part of a row that all protocols share."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import pytest


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A public constructor or function, with arguments that it accepts.

    Attributes:
      make: The constructor or function.
      arguments: An argument for each parameter, by name. Tests replace one at a time by
        wrong ones.
      rules: What each number among the arguments must be, by name: words that an error
        has after "must be". Empty if any number will do.
      kinds: What each array or function among the arguments is, by name: a key of
        `WRONG` in `wrong_values.py`. Others are spoiled by their type alone.
      traceable: The arguments that may be traced.
      checks_keys: Whether it checks PRNG keys itself. Codes, and some studies, leave
        that to JAX.
      variants: Results of other arguments, by what is special about them.
    """

    make: Callable[..., Any]
    arguments: Mapping[str, Any]
    rules: Mapping[str, str] = dataclasses.field(default_factory=dict)
    kinds: Mapping[str, str] = dataclasses.field(default_factory=dict)
    traceable: tuple[str, ...] = ()
    checks_keys: bool = True
    variants: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        return self.name

    @property
    def name(self) -> str:
        """Name of the constructor or function."""
        return self.make.__name__

    def call(self, arguments: Mapping[str, Any]) -> Any:
        """Calls the function so that it checks its arguments."""
        return self.make(**arguments)

    @property
    def example(self) -> Any:
        """The result for the arguments."""
        return self.make(**self.arguments)

    @property
    def examples(self) -> dict[str, Any]:
        """Results by name: that for the arguments, and the variants."""
        variants = {
            f"{self.name}, {label}": result for label, result in self.variants.items()
        }
        return {self.name: self.example, **variants}


def examples_of(rows):
    """Results of all rows, by name."""
    return {name: result for row in rows for name, result in row.examples.items()}


def by_name(rows):
    """Rows by the names of their constructors."""
    return {row.name: row for row in rows}


def makes(constructor, kind):
    """Returns whether a public object is a class of a kind or returns one."""
    if inspect.isclass(constructor):
        is_base = inspect.isabstract(constructor) or constructor is kind
        return issubclass(constructor, kind) and not is_base
    returned = getattr(constructor, "__annotations__", {}).get("return")
    return getattr(returned, "__name__", returned) == kind.__name__


def every_row(rows):
    """Runs a test with each row, as `row`."""
    return pytest.mark.parametrize("row", rows, ids=[row.name for row in rows])
