"""Draws the first picture of README.md and of the home page: one training step.

    python docs/hooks/idea_picture.py

It shows the example of word_pictures.py. Its background is white, so that it is legible
on GitHub's dark pages, too. On dark pages of the site, extra.css turns it over. It is
as wide as a phone, where its smallest letters have 11 pixels.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from word_pictures import (
    PARTS,
    RED,
    arrow,
    block,
    box,
    line,
    numbered_part,
    parts_of,
    picture,
    straggler_box,
    text,
)

FILE = Path(__file__).parents[1] / "images" / "idea.svg"
WIDTH = 360
HEIGHT = 424
# Centres of the three columns: parts above, workers and their messages below.
COLUMNS = (60, 180, 300)
# Left edges of the squares in a worker, relative to the centre of its column.
SQUARES = (-34, 10)


def label(y: float, words: str) -> str:
    """Returns the heading of a row."""
    return text(WIDTH / 2, y, words, size=14)


def gradient(x: float, y: float, part: int) -> str:
    """Returns a disc with the number of a part: its gradient."""
    disc = f'<circle cx="{x}" cy="{y}" r="11" fill="{PARTS[part]}"/>'
    return disc + text(x, y + 4.5, str(part + 1), "#fff")


def draw_data() -> str:
    """The parts, and a line from each to the workers that hold it."""
    drawn = [label(20, "Data: three parts, each for two workers")]
    for part, x in enumerate(COLUMNS):
        drawn.append(block(x - 52, 32, 104, 26, PARTS[part]))
        drawn.append(text(x, 50, f"part {part + 1}", "#fff"))
    for worker, x in enumerate(COLUMNS):
        for place, part in enumerate(parts_of(worker)):
            # Lines to the left leave the part on its left.
            end = x + SQUARES[place] + 12
            start = COLUMNS[part] + (end - COLUMNS[part]) / 6
            drawn.append(line(f"M{start:.0f} 60 L{end} 103", PARTS[part]))
    return "".join(drawn)


def draw_workers() -> str:
    """Three workers; the third one is late."""
    drawn = []
    for worker, x in enumerate(COLUMNS):
        is_late = worker == 2
        make_box = straggler_box if is_late else box
        drawn.append(make_box(x - 52, 108, 104, 68))
        for place, part in enumerate(parts_of(worker)):
            drawn.append(numbered_part(x + SQUARES[place], 118, 24, part))
        drawn.append(text(x, 164, f"worker {worker + 1}"))
    return "".join(drawn)


def draw_messages() -> str:
    """The messages of two workers, and none of the third."""
    late = COLUMNS[2]
    return "".join(
        [
            arrow("M60 180 V206"),
            arrow("M180 180 V206"),
            line(f"M{late} 180 V198", RED, 'stroke-dasharray="5 4"'),
            text(20, 231, "½ ×"),
            gradient(50, 226, 0),
            text(73, 231, "+"),
            gradient(96, 226, 1),
            gradient(157, 226, 1),
            text(180, 231, "−"),
            gradient(203, 226, 2),
            text(60, 258, "message 1"),
            text(180, 258, "message 2"),
            text(late, 222, "late:", RED),
            text(late, 240, "no message", RED),
        ]
    )


def draw_coordinator() -> str:
    """The coordinator adds the two messages with weights."""
    return "".join(
        [
            arrow("M60 266 V292"),
            arrow("M180 266 V292"),
            box(8, 298, 344, 88),
            label(320, "Coordinator: 2 × message 1 − message 2"),
            text(72, 353, "="),
            gradient(98, 348, 0),
            text(121, 353, "+"),
            gradient(144, 348, 1),
            text(167, 353, "+"),
            gradient(190, 348, 2),
            text(272, 353, "the full gradient"),
            text(WIDTH / 2, 376, "as if no worker were late", size=12),
        ]
    )


def draw_legend() -> str:
    """What squares and discs stand for."""
    return "".join(
        [
            numbered_part(36, 396, 22, 0),
            text(118, 412, "part of the data"),
            gradient(217, 407, 0),
            text(276, 412, "its gradient"),
        ]
    )


def draw_idea() -> str:
    """Returns the SVG file."""
    content = draw_data() + draw_workers() + draw_messages() + draw_coordinator()
    return picture(
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="8" fill="#fff"/>'
        f"{content}{draw_legend()}",
        width=WIDTH,
        height=HEIGHT,
    )


if __name__ == "__main__":
    FILE.write_text(draw_idea(), encoding="utf-8")
