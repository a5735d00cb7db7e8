"""Counts lines of code: those left without docstrings, comments and blank lines.

python -m tests.lines
"""

import ast
import io
import tokenize
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
NO_CODE = "COMMENT DEDENT ENCODING ENDMARKER INDENT NEWLINE NL".split()


def code_lines(source: str) -> int:
    """Returns how many lines of a program are code."""
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if tokenize.tok_name[token.type] not in NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        # A string that stands alone documents what is before it.
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            if isinstance(node.value.value, str):
                lines -= {*range(node.lineno, (node.end_lineno or 0) + 1)}
    return len(lines)


def main() -> None:
    """Prints the total of each part of the repository, and of each of its folders."""
    for part in ("jaxwgc", "tests", "experiments"):
        folders = Counter()
        for path in sorted((ROOT / part).rglob("*.py")):
            folder = path.relative_to(ROOT / part).parts[:-1]
            folders["/".join([part, *folder[:1]])] += code_lines(path.read_text())
        print(f"{folders.total():7,}  {part}")
        for folder, count in folders.items():
            print(f"{count:13,}  {folder}")


if __name__ == "__main__":
    main()
