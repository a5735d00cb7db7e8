"""Tables of what the library has, from `__all__` and the docstrings' first lines."""

import inspect
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import code_rows

from jaxwgc import codes, stragglers

# Reference to a paper: authors, and the title in quotation marks.
_REFERENCE = re.compile(r'References:\s+(.*?),\s*"', re.DOTALL)
# Beginning of the summary of a function that returns a waiting rule.
_RETURNED = re.compile(r"^Returns (?:a waiting rule that )?")
_YEAR = re.compile(r"\b(?:19|20)\d\d\b")


def table_of_codes() -> str:
    """A row per constructor of codes, in the order of `code_rows.py`."""
    constructors = {
        name: constructor
        for name, constructor in _public(codes)
        if _return_type(constructor) == "GradientCode"
    }
    described = code_rows.code_rows()
    if described.keys() != constructors.keys():
        raise ValueError(
            "code_rows.py must have a row per public constructor of codes; the "
            f"difference is {sorted(described.keys() ^ constructors.keys())}"
        )
    lines = [
        "",
        "| code | tolerates | arguments | decoder | measured in | paper |",
        "|:--|:--|:--|:--|:--|:--|",
    ]
    for name, row in described.items():
        cells = [
            f"{_link(codes, name)} ![Matrix](images/codes/{name}.svg)",
            row.tolerates,
            f"`{_required_arguments(constructors[name])}`",
            f"`{type(row.example.decoders[0]).__name__}`",
            row.measured,
            _source(constructors[name]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def table_of_waiting_rules() -> str:
    """A row per public waiting rule, a class or a function that returns one."""
    kind = stragglers.WaitingRule
    rows = []
    for name, rule in _public(stragglers):
        is_rule = inspect.isclass(rule) and issubclass(rule, kind)
        if not is_rule:
            is_rule = _return_type(rule) == kind.__name__
        if is_rule and not inspect.isabstract(rule) and rule is not kind:
            rows.append(f"| {_link(stragglers, name)} | {_summary(rule)} |")
    return "\n".join(["", "| waiting rules | |", "|:--|:--|", *sorted(rows), ""])


# Tables by the name of their comments in the pages.
TABLES: dict[str, Callable[[], str]] = {
    "list_codes": table_of_codes,
    "list_waiting_rules": table_of_waiting_rules,
}


def _public(module: ModuleType) -> Iterator[tuple[str, Any]]:
    for name in module.__all__:
        yield name, getattr(module, name)


def _required_arguments(function: Any) -> str:
    """The names of the arguments without a default."""
    parameters = inspect.signature(function).parameters.values()
    return ", ".join(
        parameter.name
        for parameter in parameters
        if parameter.default is inspect.Parameter.empty
    )


def _return_type(function: Any) -> str:
    """The name of the type that a function returns, empty if it is unknown."""
    if not inspect.isfunction(function):
        return ""
    kind = function.__annotations__.get("return", "")
    return getattr(kind, "__name__", str(kind))


def _link(module: ModuleType, name: str) -> str:
    page = module.__name__.rpartition(".")[2]
    return f"[`{name}`](api/{page}.md#{module.__name__}.{name})"


def _summary(documented: Any) -> str:
    """The first line of a docstring, without the type that is returned."""
    line = _RETURNED.sub("", inspect.getdoc(documented).splitlines()[0])
    line = line.removesuffix(".").replace("|", "\\|").replace(" * ", " · ")
    return line[0].upper() + line[1:]


def _source(documented: Any) -> str:
    """Authors and year of the first reference, empty if there is none."""
    text = inspect.getdoc(documented)
    reference = _REFERENCE.search(text)
    if reference is None:
        return ""
    authors = " ".join(reference[1].split()).split(", ")
    year = _YEAR.search(text, reference.end())
    named = authors[0] if len(authors) == 1 else f"{authors[0]} et al."
    if len(authors) == 2:
        named = " and ".join(authors)
    return named if year is None else f"{named}, {year[0]}"


if __name__ == "__main__":
    for table in TABLES.values():
        print(table())
