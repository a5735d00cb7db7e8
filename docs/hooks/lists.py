"""Tables of what the library has, from `__all__` and the docstrings' first lines."""

import inspect
import re
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from jaxwgc import codes, stragglers

# Reference to a paper: authors, and the title in quotation marks.
_REFERENCE = re.compile(r'References:\s+(.*?),\s*"', re.DOTALL)
# Beginning of the summary of a function that returns an object of a kind.
_RETURNED = re.compile(r"^Returns (?:a waiting rule that |a delay model that )?")
_YEAR = re.compile(r"\b(?:19|20)\d\d\b")


def table_of_codes() -> str:
    """A row per constructor of codes: name, summary and source."""
    rows = []
    for name, constructor in _public(codes):
        if inspect.isfunction(constructor) and _returns_code(constructor):
            summary = _summary(constructor)
            rows.append(
                f"| {_link(codes, name)} | {summary} | {_source(constructor)} |"
            )
    head = ["| code | | source |", "|:--|:--|:--|"]
    return "\n".join(["", *head, *sorted(rows), ""])


def table_of_delays() -> str:
    """A row per delay model: name and summary."""
    return _table("delay models", stragglers.DelayModel)


def table_of_waiting_rules() -> str:
    """A row per waiting rule: name and summary."""
    return _table("waiting rules", stragglers.WaitingRule)


# Tables by the name of their comments in the pages.
TABLES: dict[str, Callable[[], str]] = {
    "list_codes": table_of_codes,
    "list_delays": table_of_delays,
    "list_waiting_rules": table_of_waiting_rules,
}


def _table(heading: str, kind: type) -> str:
    """A row per public class of a kind, and per function that returns one."""
    rows = []
    for name, model in _public(stragglers):
        is_class = inspect.isclass(model) and issubclass(model, kind)
        if not is_class:
            is_class = _return_type(model) == kind.__name__
        if is_class and not inspect.isabstract(model) and model is not kind:
            rows.append(f"| {_link(stragglers, name)} | {_summary(model)} |")
    return "\n".join(["", f"| {heading} | |", "|:--|:--|", *sorted(rows), ""])


def _public(module: ModuleType) -> Iterator[tuple[str, Any]]:
    for name in module.__all__:
        yield name, getattr(module, name)


def _returns_code(constructor: Any) -> bool:
    return _return_type(constructor) == "GradientCode"


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
