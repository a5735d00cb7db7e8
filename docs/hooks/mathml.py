"""Turns the LaTeX of a page into MathML while the site is built.

``pymdownx.arithmatex`` finds the mathematics and leaves it as ``\\(...\\)`` and
``\\[...\\]``, in pages and in docstrings alike. Browsers lay MathML out themselves,
so that the site needs neither a script nor a network. A command that
``latex2mathml`` does not know is a warning, and an error in a strict build.
"""

import html
import itertools
import logging
import re
import xml.etree.ElementTree as ET

import latex2mathml.converter

log = logging.getLogger("mkdocs.hooks.mathml")

NAMESPACE = "{http://www.w3.org/1998/Math/MathML}"
ARITHMATEX = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">'
    r"\\(?P<open>[(\[])(?P<latex>.*?)\\[)\]]</(?P=tag)>",
    re.DOTALL,
)
LIMITS = ("argmin", "max", "min")
BOLD_DIGITS = {ord("0") + i: 0x1D7CE + i for i in range(10)}

ET.register_namespace("", NAMESPACE[1:-1])


def on_page_content(content, page, **_):
    """Replaces the mathematics of a rendered page."""
    return ARITHMATEX.sub(lambda match: _mathml(match, page.file.src_uri), content)


def _mathml(match, source):
    latex = html.unescape(match["latex"]).strip()
    display = "block" if match["open"] == "[" else "inline"
    try:
        # latex2mathml leaves a bare ampersand where it does not know the
        # environment; that and its other errors end here.
        root = ET.fromstring(latex2mathml.converter.convert(latex, display=display))
    except Exception as error:
        log.warning("%s: cannot convert %r: %s", source, latex, error)
        return match[0]
    for element in root.iter():
        if element.text and "\\" in element.text:
            log.warning("%s: unknown %s in %r", source, element.text, latex)
        for child, following in itertools.zip_longest(element, element[1:]):
            _polish(child, following, display)
    mathml = ET.tostring(root, encoding="unicode")
    return f'<div class="math">{mathml}</div>' if display == "block" else mathml


def _polish(element, following, display):
    """Rewrites what browsers do not draw as LaTeX does."""
    tag = element.tag.removeprefix(NAMESPACE)
    text = element.text or ""
    if tag == "mn" and element.get("mathvariant") == "bold":
        # Browsers know this attribute no more: MathML Core.
        del element.attrib["mathvariant"]
        element.text = text.translate(BOLD_DIGITS)
    elif tag == "msub" and display == "block" and element[0].text in LIMITS:
        element.tag = f"{NAMESPACE}munder"
    elif tag == "mi" and text == ";":
        element.tag = f"{NAMESPACE}mo"
    elif tag == "mo" and text in ("/", "\N{HORIZONTAL ELLIPSIS}"):
        element.attrib.update(lspace="0", rspace="0")
    elif tag == "mo" and text.isalpha() and text.isascii():
        bracket = following is not None and following.text == "("
        element.attrib.update(lspace="0.167em", rspace="0" if bracket else "0.167em")
