"""Rules of plain English that a program can check, over library and documentation."""

import ast
import io
import re
import tokenize
from pathlib import Path

ROOT = Path(__file__).parents[1]
OPENINGS = re.compile(
    r"(of|what|who|whose|that|whether|for|from|by|where|how|with|as|to|in|on|if|the"
    r" same|like|likewise)\b",
    re.IGNORECASE,
)
POINTERS = re.compile(r"\b(that|those) of\b")
VERB = re.compile(r"[A-Z][a-z]+s(, \w+s)*( and \w+s)?\b(?! of\b)")
PERSONS = re.compile(r"\b(who|whom|whose|whoever|nobody|somebody|everybody)\b", re.I)
# Words that have a term in the field, and phrases that point elsewhere.
TERMS = re.compile(
    r"\b(answers?|answered|likewise|see there|refuse[sd]?|rounding unit|no less than"
    r"|cut off|as for)\b(?!\()",
    re.IGNORECASE,
)
# Titles and public names that keep an everyday word.
KEPT = re.compile(
    r"wrong[ -]answers?|answer_request|decode_answers|num_answers|timeouts\.answer"
    r"|\b(answers?|refused|who)(=|:| must)|answers these|`[^`]*`"
    r"|\b(users|readers) (who|whose)\b",
    re.IGNORECASE,
)
LONGEST_SENTENCE = 35
TEXT = ast.Constant | ast.JoinedStr


def is_verb_needed(node):
    """Returns whether a definition is a function, not a property or a class."""
    return isinstance(node, ast.FunctionDef) and not any(
        "property" in ast.unparse(decorator) for decorator in node.decorator_list
    )


def library_texts():
    """Yields kind, place and text of docstrings, comments and messages."""
    for path in sorted((ROOT / "jaxwgc").rglob("*.py")):
        source = path.read_text()
        place = path.relative_to(ROOT)
        nodes = [*ast.walk(ast.parse(source))]
        # Docstrings, and the parts of f-strings.
        inner = {
            id(part)
            for node in nodes
            if isinstance(node, ast.Expr | ast.JoinedStr)
            for part in ast.iter_child_nodes(node)
        }
        for node in nodes:
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                if text := ast.get_docstring(node):
                    kind = "function" if is_verb_needed(node) else "other"
                    yield kind, f"{place}:{getattr(node, 'lineno', 1)}", text
            elif isinstance(node, TEXT) and id(node) not in inner:
                parts = (getattr(part, "value", None) for part in ast.walk(node))
                text = " ".join(part for part in parts if isinstance(part, str))
                if " " in text.strip():
                    yield "message", f"{place}:{node.lineno}", text
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type == tokenize.COMMENT and not token.string.startswith("#:"):
                yield "comment", f"{place}:{token.start[0]}", token.string[1:].strip()


def page_texts():
    """Yields kind, place and text of the paragraphs of README and pages."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    for path in pages:
        if path.name == "changelog.md":
            continue
        text = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.M | re.S)
        text = re.sub(r"<!-- \w+ -->.*?<!-- end -->", "", text, flags=re.S)
        text = re.sub(r"\$[^$]*\$", "x", text)
        for paragraph in re.split(r"\n\s*\n|\n(?=\s*[-|*#\d])", text):
            yield "page", str(path.relative_to(ROOT)), " ".join(paragraph.split())


def sentences(text):
    """Returns the sentences of a text without code, links and lists of arguments."""
    text = re.sub(r"\n\s*(Example|References):.*", "", text, flags=re.S)
    text = re.sub(r"^\s*>>>.*$", "", text, flags=re.M)
    text = re.sub(r"\]\([^)]*\)", "]", text)
    return re.split(r"(?<=[.:;?!])\s+|\n\s*\n|\n\s*-|\n(?=\s+\w+: )", text)


def findings():
    """Yields the rule that is broken, the place and the sentence."""
    for kind, place, text in [*library_texts(), *page_texts()]:
        if kind in ("function", "other"):
            summary = text.split("\n\n")[0]
            if OPENINGS.match(summary) or POINTERS.search(summary):
                yield "opening", place, summary
            elif kind == "function" and not VERB.match(summary):
                yield "verb", place, summary
            if "\n" in summary:
                yield "summary", place, summary
            raises = re.search(r"\n\s*Raises:\n(.*?)(?=\n\s*\w+:\n|\Z)", text, re.S)
            if raises and re.search(r":\s+where\b", raises[1], re.I):
                yield "where", place, " ".join(raises[1].split())
        for sentence in sentences(text):
            plain = KEPT.sub("x", sentence)
            if PERSONS.search(plain):
                yield "persons", place, sentence
            if TERMS.search(plain):
                yield "terms", place, sentence
            if len(plain.split()) > LONGEST_SENTENCE and "|" not in plain:
                yield "long", place, sentence


def test_prose_keeps_its_rules():
    assert [*findings()] == []


if __name__ == "__main__":
    for rule, place, text in findings():
        print(rule, place, " ".join(text.split())[:160])
