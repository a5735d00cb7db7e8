"""Gives the Markdown that notebook.md.j2 makes of a notebook back as it was meant."""

import html


def on_page_markdown(markdown, page, **_):
    """Without the escapes of HTML, and the style sheet that mkdocs-jupyter appends."""
    if page.file.src_uri.endswith(".ipynb"):
        markdown = html.unescape(markdown.rpartition("<style>")[0].rstrip())
    return markdown
