"""Figures that notebooks show without pyplot."""

import io

try:
    from matplotlib.figure import Figure
except ImportError as error:
    raise ImportError(
        "matplotlib must be installed to draw figures; run pip install '.[plot]' in "
        "a checkout of the repository"
    ) from error


class NotebookFigure(Figure):
    """Figure that a notebook shows as PNG, even if pyplot was never imported."""

    def _repr_png_(self) -> bytes:
        """Returns the bytes of a PNG image, which IPython displays."""
        buffer = io.BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()
