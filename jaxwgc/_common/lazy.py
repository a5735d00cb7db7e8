"""Packages that import each public name when it is first used."""

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def attributes(
    package: str, modules: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Returns `__getattr__` and `__dir__` of a package with lazy imports.

    `__getattr__` imports a name of the package when it is first used.

    Args:
      package: Name of the package.
      modules: Module of each public name, relative to the package. A submodule that is
        public itself is its own module.
    """

    def get(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = importlib.import_module(f"{package}.{modules[name]}")
        return module if modules[name] == name else getattr(module, name)

    def names() -> list[str]:
        always = [name for name in vars(sys.modules[package]) if name.startswith("__")]
        return sorted([*modules, *always])

    return get, names
