"""Gives every picture its size, and a link to itself, where it can be enlarged.

Pictures are drawn at 160 pixels an inch with letters of ten points. Where the page is
narrow they keep the width at which these can be read, and scroll: see extra.css.
"""

import base64
import posixpath
import re
import struct
from pathlib import Path

IMAGE = re.compile(r'<img [^>]*?src="([^"]+)"[^>]*?>')
PNG_DATA = "data:image/png;base64,"
PIXELS_PER_INCH = 160


def on_page_content(content, page, config, **_):
    """Rewrites the pictures of a rendered page, those of tutorials too."""

    def with_size(match):
        image, source = match[0], match[1]
        path = Path(config.docs_dir, posixpath.dirname(page.url), source)
        if source.startswith(PNG_DATA):
            start = base64.b64decode(source.removeprefix(PNG_DATA)[:32])
        elif path.suffix == ".png" and path.is_file():
            start = path.read_bytes()[:24]
        else:
            return image
        width, height = struct.unpack(">II", start[16:24])
        style = f"--inches: {width / PIXELS_PER_INCH:g}"
        sized = f'<img width="{width}" height="{height}" style="{style}"{image[4:]}'
        if source.startswith(PNG_DATA):
            return f'<span class="figure">{sized}</span>'
        return f'<a class="figure" href="{source}" title="Enlarge">{sized}</a>'

    return IMAGE.sub(with_size, content)
