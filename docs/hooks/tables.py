"""Puts the measured tables of docs/results into README.md and the pages.

    python docs/hooks/tables.py

A table stands between the comments `<!-- NAME -->` and `<!-- end -->`, where NAME is
that of its file in docs/results. So it is seen on GitHub, too.
"""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"(<!-- (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(text: str) -> str:
    """`text` with every table as it was measured last."""
    return BLOCK.sub(
        lambda match: (
            match[1] + "\n" + (RESULTS / f"{match[2]}.md").read_text() + "\n" + match[3]
        ),
        text,
    )


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(filled(page.read_text()))
