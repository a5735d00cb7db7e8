"""Finds numbers that look measured in the sentences of README.md and the pages."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
_SKIPPED = {"changelog.md", "mathematics.md"}
PAGES = [
    "README.md",
    *(
        path.relative_to(ROOT).as_posix()
        for folder in ("docs", "docs/reproduction")
        for path in sorted((ROOT / folder).glob("*.md"))
        if path.name not in _SKIPPED
    ),
]

_NUMBER = r"\d[\d,]*(?:\.\d+)?(?:e-?\d+)?"
_UNIT = (
    r"(?:%|[ -](?:times|milliseconds?|microseconds?|seconds?|minutes?|ms|s|µs"
    r"|[kMG]i?B|eps)\b)"
)
# The first number of "0.8 to 2.1 times" has the unit of the second.
_UNIT_OF_RANGE = rf"(?=(?: to | and |–){_NUMBER}{_UNIT})"
_LITERAL = re.compile(
    rf"(?<![\w.,$^{{/-])(?P<number>{_NUMBER})(?P<unit>{_UNIT}|{_UNIT_OF_RANGE})?(?!\w)"
)
# A number in a formula: $1.2 \cdot 10^{-5}$.
_POWER = re.compile(r"\$(?P<mantissa>\d+(?:\.\d+)?) \\cdot 10\^\{(?P<power>-?\d+)\}\$")
# Code, formulas, targets of links, HTML; addresses, versions, sections of papers.
_HIDDEN = re.compile(
    r"`[^`]*`|\$[^$]*\$|(?<=\])\([^)]*\)|<!--.*?-->|</?[a-z][^>]*>"
    r"|\b\d+(?:\.\d+){2,}|\b(?:section|\[?theorem|Python|Ray) \d+\.\d+"
)
_GENERATED = re.compile(r"<!-- \w+ -->\n(.*?)<!-- end -->", re.DOTALL)
_COPIED = re.compile(r"<!-- README:\w+ -->.*?<!-- end -->", re.DOTALL)
_CODE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
_FORMULA = re.compile(r"^\$\$.*?\$\$$", re.DOTALL | re.MULTILINE)
_HEADING = re.compile(r"^(?=#+ )", re.MULTILINE)
# Between paragraphs, items of lists and rows of tables.
_BREAK = re.compile(r"\n\s*\n|\n(?=\s*(?:[-*|]|\d+\.) )")
_MONTH = (
    "January|February|March|April|May|June|July|August|September|October|November"
    "|December"
)
_DATE = re.compile(rf"\b(?:{_MONTH}) 20\d\d\b")
_COMMAND = re.compile(r"`(?:python|pytest|make) [^`]*`|`[^`]*\.py`")


class Literal(NamedTuple):
    """A number as it is printed.

    Attributes:
      printed: Digits, e.g. "1,024", "0.63" or "1.6e-6".
      start: Place of its first character in the paragraph.
      end: Place behind its last character.
      is_measured: Whether the number looks measured: it is a decimal or has a unit.
    """

    printed: str
    start: int
    end: int
    is_measured: bool

    @property
    def value(self) -> float:
        return float(self.printed.replace(",", ""))

    @property
    def half_digit(self) -> float:
        """Half a unit of the last printed digit."""
        mantissa, _, power = self.printed.partition("e")
        decimals = len(mantissa.partition(".")[2])
        return 0.5 * 10.0 ** (int(power or 0) - decimals)

    @property
    def num_significant_digits(self) -> int:
        mantissa = self.printed.partition("e")[0].replace(",", "")
        if "." not in mantissa:
            mantissa = mantissa.rstrip("0")
        return len(mantissa.replace(".", "").lstrip("0"))

    def is_rounded(self, value: float) -> bool:
        """Returns whether `value` rounds to the printed number."""
        return abs(value - self.value) <= self.half_digit * (1 + 1e-6)


class Section(NamedTuple):
    """Text from one heading to the next.

    Attributes:
      paragraphs: Paragraphs, items of lists and rows of handwritten tables, each in one
        line.
      cells: Numbers of the generated tables and reports.
    """

    paragraphs: list[str]
    cells: list[float]


class Place(NamedTuple):
    """A number that looks measured, and where it stands.

    Attributes:
      paragraph: Text around the number.
      literal: The number.
      cells: Numbers of the tables that it may come from.
    """

    paragraph: str
    literal: Literal
    cells: list[float]


def read(page: str) -> str:
    """Returns the text of a page."""
    return (ROOT / page).read_text(encoding="utf-8")


def literals(text: str) -> Iterator[Literal]:
    """Yields the numbers of a text, outside of code and formulas."""
    for match in _POWER.finditer(text):
        printed = f"{match['mantissa']}e{match['power']}"
        yield Literal(printed, match.start(), match.end(), is_measured=True)
    visible = _HIDDEN.sub(lambda match: " " * len(match[0]), text)
    for match in _LITERAL.finditer(visible):
        printed = match["number"].rstrip(",")
        is_decimal = "." in printed or "e" in printed
        is_measured = is_decimal or match["unit"] is not None
        end = match.start() + len(printed)
        yield Literal(printed, match.start(), end, is_measured)


def sections(text: str) -> Iterator[Section]:
    """Yields the sections of a page."""
    text = _COPIED.sub("", text)
    # A comment in code is no heading.
    text = _CODE.sub(lambda match: match[0].replace("\n#", "\n "), text)
    for part in _HEADING.split(text):
        body = re.sub(r"^#+ .*\n?", "", part)
        tables = "".join(_GENERATED.findall(body))
        prose = _FORMULA.sub("", _CODE.sub("", _GENERATED.sub("", body)))
        paragraphs = [" ".join(text.split()) for text in _BREAK.split(prose)]
        yield Section([text for text in paragraphs if text], _cells(tables))


def places(text: str) -> Iterator[Place]:
    """Yields the numbers of a page that look measured."""
    parts = [*sections(text)]
    of_page = [cell for part in parts for cell in part.cells]
    for part in parts:
        for paragraph in part.paragraphs:
            for literal in literals(paragraph):
                if literal.is_measured:
                    yield Place(paragraph, literal, part.cells or of_page)


def is_dated(paragraph: str) -> bool:
    """Returns whether a paragraph names a command and a month."""
    return bool(_DATE.search(paragraph) and _COMMAND.search(paragraph))


def _cells(tables: str) -> list[float]:
    """Returns the numbers of generated tables, without those of their captions."""
    lines = [line for line in tables.splitlines() if not line.startswith("*")]
    numbers = re.findall(rf"(?<![\w.,]){_NUMBER}", "\n".join(lines))
    return [float(number.replace(",", "")) for number in numbers]
