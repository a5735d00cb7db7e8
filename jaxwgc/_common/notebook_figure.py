"""Figures that notebooks show without pyplot."""

import io

try:
    from matplotlib.figure import Figure
except ImportError as error:
    raise ImportError(
        "matplotlib is needed to draw figures: in a checkout, pip install '.[plot]'"
    ) from error


class NotebookFigure(Figure):
    """Figure that a notebook shows as PNG, also if pyplot was never imported."""

    def _repr_png_(self) -> bytes:
        """Returns the figure as PNG."""
        buffer = io.BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()
