"""Leaves out of the site what pages of the API say to readers of a checkout.

There, docstrings are in files that the links name; here, they follow on the page.
"""

import re

SOURCES = re.compile(r"^In a checkout, .*\]\(\.\./\.\./jaxwgc/.*\n", re.MULTILINE)


def on_page_markdown(markdown, **_):
    """Called with the text of each page."""
    return SOURCES.sub("", markdown)
