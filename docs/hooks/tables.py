"""Puts the measured tables of docs/results into README.md and the pages.

    python docs/hooks/tables.py

A table stands between the comments `<!-- NAME -->` and `<!-- end -->`, where NAME is
that of its file in docs/results. In the same way, `<!-- README:NAME -->` stands before
the section of README.md that its comments call NAME, and `<!-- list_NAME -->` before a
table of what the library has, see `lists.py`. So they are seen on GitHub, too.
"""

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import lists

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs" / "reproduction").glob("*.md")),
]
BLOCK = re.compile(r"(<!-- ((?:README:)?\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(text: str) -> str:
    """`text` with every table as it was measured last, and sections of the README."""
    return BLOCK.sub(
        lambda match: f"{match[1]}\n{_content(match[2])}\n{match[3]}", text
    )


def _content(name):
    if name in lists.TABLES:
        return lists.TABLES[name]()
    prefix, _, section = name.rpartition(":")
    if not prefix:
        return (RESULTS / f"{name}.md").read_text()
    after = (ROOT / "README.md").read_text().split(f"[start:{section}] -->\n")[1]
    return after.split("<!--")[0]


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(filled(page.read_text()))
