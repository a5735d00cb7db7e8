"""Puts measured tables and numbers into README.md and the pages.

    python docs/hooks/tables.py

A table stands between the comments `<!-- NAME -->` and `<!-- end -->`, where NAME is
that of its file in docs/results. In the same way, `<!-- list_NAME -->` stands before a
table of what the library has, see `lists.py`. A number stands behind `<!-- = EXPRESSION
-->`, where EXPRESSION is Python with the names of `quantities.py`, and keeps its number
of decimals. So they are seen on GitHub, too.

While the site is built, differences from the results are warnings, and errors in a
strict build. So are sentences that contradict them, see `claims.py`.
"""

import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import claims
import lists
import quantities

log = logging.getLogger("mkdocs.hooks.tables")

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(
    r"<!-- (?P<name>= .*?|\w+) -->(?P<content>.*?)<!-- end -->", re.DOTALL
)
# A number, a percentage, or a product with a power of ten: $1.2 \cdot 10^{-5}$.
_NUMBER = re.compile(
    r"\$?-?[\d,]+(?:\.(?P<decimals>\d+))?(?P<unit>%|e-?\d+| \\cdot 10\^\{-?\d+\}\$)?"
)


def filled(text: str, page: str) -> str:
    """`text` with every table and number as it was measured last."""
    return BLOCK.sub(
        lambda match: f"<!-- {match['name']} -->{_content(match, page)}<!-- end -->",
        text,
    )


def problems(text: str, page: str) -> Iterator[str]:
    """Yields what differs from the results in the text of a page."""
    for match in BLOCK.finditer(text):
        content = _content(match, page)
        if content == match["content"]:
            continue
        if match["name"].startswith("= "):
            yield (
                f"{page} says {match['content']}; {match['name'][2:]} is {content} by "
                "the results"
            )
        else:
            yield f"{page}: the table {match['name']} is not that of the results"
    words = " ".join(without_comments(text).split())
    for claim in claims.CLAIMS:
        if claim.page == page and claim.words not in words:
            yield f"{page} no longer says {claim.words!r}, see docs/hooks/claims.py"
        elif claim.page == page and not claim.holds():
            yield f"{page} says {claim.words!r}, which contradicts the results"


def without_comments(text: str) -> str:
    """`text` with numbers alone, without the comments around them."""
    return BLOCK.sub(
        lambda match: match["content"] if match["name"][0] == "=" else match[0], text
    )


def on_pre_build(**_):
    """Called before the pages are read."""
    for path in PAGES:
        page = path.relative_to(ROOT).as_posix()
        for problem in problems(path.read_text(encoding="utf-8"), page):
            log.warning("%s (python docs/hooks/tables.py fills numbers in)", problem)


def on_page_markdown(markdown, **_):
    """Called with the text of each page."""
    return without_comments(markdown)


def _content(match, page):
    """The table or number that `match` should contain."""
    name = match["name"]
    if name.startswith("= "):
        try:
            value = eval(name[2:], quantities.__dict__)
            return _rounded(value, match["content"])
        except Exception as error:
            raise ValueError(f"{page}: cannot compute {name[2:]}: {error}") from error
    if name in lists.TABLES:
        return f"\n\n{lists.TABLES[name]()}\n"
    return f"\n\n{quantities.text(name)}\n"


def _rounded(value, printed):
    """`value` in the notation and with as many decimals as the number `printed`."""
    match = _NUMBER.fullmatch(printed)
    if match is None:
        raise ValueError(f"{printed!r} is not a number")
    decimals = len(match["decimals"] or "")
    unit = match["unit"] or ""
    if unit in ("", "%"):
        return format(value, f",.{decimals}{unit or 'f'}")
    mantissa, _, power = f"{value:.{decimals}e}".partition("e")
    if unit.startswith("e"):
        return f"{mantissa}e{power}"
    return rf"${mantissa} \cdot 10^{{{int(power)}}}$"


if __name__ == "__main__":
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        page.write_text(
            filled(text, page.relative_to(ROOT).as_posix()), encoding="utf-8"
        )
