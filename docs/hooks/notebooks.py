"""Shows the tutorials like other pages, and offers them for download.

They are kept as text, `docs/tutorials/*.py` in the percent format of Jupytext. The
plugin mkdocs-jupyter runs them.
"""

import html
from pathlib import Path, PurePosixPath

import jupytext

DOWNLOADS = """
<p>Download: <a href="{name}.ipynb" download>notebook</a>,
<a href="{name}.py" download>Python</a></p>
"""


def is_notebook(page):
    """Returns whether a page is one of the tutorials."""
    return page.file.src_uri.endswith(".py")


def on_page_markdown(markdown, page, **_):
    """Adds the downloads to the Markdown that notebook.md.j2 makes of a notebook.

    Removes the escapes of HTML.
    """
    if not is_notebook(page):
        return markdown
    title, _, body = html.unescape(markdown).strip().partition("\n")
    name = PurePosixPath(page.file.src_uri).stem
    return f"{title}\n{DOWNLOADS.format(name=name)}{body}"


def on_post_page(output, page, **_):
    """Writes both downloads beside the page."""
    if is_notebook(page):
        source = Path(page.file.abs_src_path)
        target = Path(page.file.abs_dest_path).with_suffix(".py")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
        jupytext.write(jupytext.read(source), target.with_suffix(".ipynb"))
    return output
