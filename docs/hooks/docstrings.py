"""Lays out the sections ``Example:`` and ``References:`` of the library's docstrings.

The Google style of mkdocstrings knows ``Examples:`` alone and no references. It would
take both for notes, and the prompts of a doctest for quotations. Markdown wants an
empty line before a list, which docstrings spare.
"""

import re
import textwrap

import griffe

EXAMPLE = re.compile(r"^Example:$", re.MULTILINE)
LIST = re.compile(r"^( *)(?! |- )(.*\S)\n(?=\1 +- )", re.MULTILINE)
REFERENCES = re.compile(r"^References:\n((?:[ \t]+\S.*(?:\n|$)|\n)+)", re.MULTILINE)


class Sections(griffe.Extension):
    """Rewrites the sections before docstrings are parsed."""

    def on_instance(self, *, obj, **_):
        """Called for every module, class, function and attribute."""
        if obj.docstring:
            value = EXAMPLE.sub("Examples:", obj.docstring.value)
            value = LIST.sub(r"\1\2\n\n", value)
            obj.docstring.value = REFERENCES.sub(_paragraphs, value)


def _paragraphs(match):
    return f"**References:**\n\n{textwrap.dedent(match[1])}"
