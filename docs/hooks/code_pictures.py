"""Draws the encoding matrix of each row of the table of all codes.

    python docs/hooks/code_pictures.py

Rows of a picture are messages, and columns are parts. Positive entries are blue and
negative ones are red. Entries of complex codes show their real part. Pictures have no
background, so that they are legible on light and on dark pages.
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
import code_rows

FOLDER = Path(__file__).parents[1] / "images" / "codes"
# Pixels of the longer side of a picture.
SIZE = 84
POSITIVE = "#2f6fb3"
NEGATIVE = "#d9483b"
# Opacities of entries, from small to large. The smallest stands out from light and from
# dark pages.
OPACITIES = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
# Messages of codes too large to draw: the first ones, and the parts in them.
MOST_MESSAGES = 24


def shown_matrix(matrix: np.ndarray) -> np.ndarray:
    """Returns the entries to draw, real and relative to the largest one."""
    if len(matrix) > MOST_MESSAGES:
        matrix = matrix[:12]
        matrix = matrix[:, np.any(matrix != 0, axis=0)]
    matrix = np.real(matrix)
    return matrix / np.abs(matrix).max()


def picture(matrix: np.ndarray) -> str:
    """Returns an SVG file with a cell per entry of a matrix."""
    num_rows, num_columns = matrix.shape
    cell = SIZE / max(matrix.shape)
    width = round(cell * num_columns) + 2
    height = round(cell * num_rows) + 2
    # Square roots, so that small entries differ from each other, too.
    level_of = np.rint(np.sqrt(np.abs(matrix)) * (len(OPACITIES) - 1))
    drawn = []
    for color, is_drawn in ((POSITIVE, matrix > 1e-6), (NEGATIVE, matrix < -1e-6)):
        for level, opacity in enumerate(OPACITIES):
            places = np.argwhere(is_drawn & (level_of == level))
            if len(places):
                squares = "".join(
                    f"M{1 + cell * column:.1f} {1 + cell * row:.1f}"
                    f"h{cell - 0.7:.1f}v{cell - 0.7:.1f}h-{cell - 0.7:.1f}z"
                    for row, column in places
                )
                drawn.append(
                    f'<path d="{squares}" fill="{color}" fill-opacity="{opacity}"/>'
                )
    frame = f'width="{width - 1}" height="{height - 1}" fill="none" stroke="#8a94a3"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}"><rect x="0.5" y="0.5" {frame}/>'
        f"{''.join(drawn)}</svg>\n"
    )


if __name__ == "__main__":
    for name, row in code_rows.code_rows().items():
        matrix = shown_matrix(np.asarray(row.example.encoding_matrix))
        FOLDER.joinpath(f"{name}.svg").write_text(picture(matrix))
