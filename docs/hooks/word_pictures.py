"""Draws the pictures of the eight words on the home page.

    python docs/hooks/word_pictures.py

All of them show the example of Tandon et al.: three workers, three parts, two parts per
worker, and worker 3 is a straggler. Pictures have no background. Their colours are
legible on white and, turned over by extra.css, on dark pages.
"""

from pathlib import Path

FOLDER = Path(__file__).parents[1] / "images" / "words"
WIDTH = 200
HEIGHT = 112
INK = "#4b5563"
RED = "#d9483b"
# Colours of parts 1, 2 and 3, as in idea.svg and communication.svg.
PARTS = ("#3b82c4", "#2a9d6f", "#c98a0b")
# Encoding matrix: a row per worker, a column per part.
COEFFICIENTS = (("½", "1", "0"), ("0", "1", "−1"), ("½", "0", "1"))


def box(x: float, y: float, width: float, height: float, style: str = "") -> str:
    """Returns an outlined box with round corners."""
    shape = f'x="{x}" y="{y}" width="{width}" height="{height}" rx="6"'
    return f'<rect {shape} fill="none" stroke="{INK}" stroke-width="1.5" {style}/>'


def straggler_box(x: float, y: float, width: float, height: float) -> str:
    """Returns the dashed box of a worker that does not respond."""
    return box(x, y, width, height, f'style="stroke: {RED}" stroke-dasharray="5 4"')


def block(x: float, y: float, width: float, height: float, color: str) -> str:
    """Returns a filled rectangle."""
    shape = f'x="{x}" y="{y}" width="{width}" height="{height}" rx="2"'
    return f'<rect {shape} fill="{color}"/>'


def text(x: float, y: float, words: str, color: str = INK, size: int = 13) -> str:
    """Returns centred words."""
    place = f'x="{x}" y="{y}" fill="{color}" font-size="{size}"'
    return f"<text {place}>{words}</text>"


def line(path: str, color: str = INK, style: str = "") -> str:
    """Returns a line along a path."""
    return f'<path d="{path}" fill="none" stroke="{color}" stroke-width="1.8" {style}/>'


def arrow(path: str) -> str:
    """Returns a line with a head at the end of its path."""
    return line(path, style='marker-end="url(#head)"')


def numbered_part(x: float, y: float, size: float, index: int) -> str:
    """Returns the square of a part with its number."""
    number = text(x + size / 2, y + size / 2 + 4.5, str(index + 1), "#fff")
    return block(x, y, size, size, PARTS[index]) + number


def parts_of(worker: int) -> list[int]:
    """Returns the parts that a worker holds."""
    return [part for part in range(3) if COEFFICIENTS[worker][part] != "0"]


def message_bar(x: float, y: float, width: float, worker: int) -> str:
    """Returns one bar in the colours of a worker's parts."""
    held = parts_of(worker)
    height = 18 / len(held)
    return "".join(
        block(x, y + height * place, width, height, PARTS[part])
        for place, part in enumerate(held)
    )


def draw_worker() -> str:
    """Three boxes with two parts each; the third one is late."""
    drawn = []
    for worker in range(3):
        left = 8 + 64 * worker
        make_box = straggler_box if worker == 2 else box
        drawn.append(make_box(left, 24, 56, 44))
        for place, part in enumerate(parts_of(worker)):
            drawn.append(numbered_part(left + 6 + 24 * place, 36, 20, part))
    drawn.append(text(36, 90, "worker 1"))
    drawn.append(text(100, 90, "worker 2"))
    drawn.append(text(164, 90, "straggler", RED))
    return "".join(drawn)


def draw_part() -> str:
    """The rows of the data, cut into three bands."""
    drawn = []
    for part, color in enumerate(PARTS):
        top = 10 + 32 * part
        drawn.append(block(50, top, 62, 28, color))
        for row in range(1, 4):
            y = top + 7 * row
            drawn.append(line(f"M50 {y} H112", "#fff", 'stroke-opacity="0.6"'))
        drawn.append(text(144, top + 19, f"part {part + 1}"))
    return "".join(drawn)


def draw_message() -> str:
    """Two partial gradients of a worker become one bar."""
    return "".join(
        [
            box(8, 20, 84, 72),
            text(26, 48, "½ ×"),
            block(46, 34, 38, 18, PARTS[0]),
            text(26, 78, "1 ×"),
            block(46, 64, 38, 18, PARTS[1]),
            arrow("M96 57 H140"),
            message_bar(148, 48, 40, 0),
        ]
    )


def draw_round() -> str:
    """Four steps in a ring."""
    return "".join(
        [
            box(8, 12, 78, 28),
            text(47, 31, "compute"),
            box(114, 12, 78, 28),
            text(153, 31, "respond"),
            box(114, 72, 78, 28),
            text(153, 91, "decode"),
            box(8, 72, 78, 28),
            text(47, 91, "update"),
            arrow("M88 26 H110"),
            arrow("M153 42 V68"),
            arrow("M112 86 H90"),
            arrow("M47 70 V44"),
        ]
    )


def draw_code() -> str:
    """The encoding matrix: a row per worker, a column per part."""
    drawn = [text(55, 13, "part")]
    for worker in range(3):
        drawn.append(text(44, 37 + 29 * worker, f"worker {worker + 1}"))
    for part in range(3):
        drawn.append(text(98 + 36 * part, 13, str(part + 1)))
        for worker in range(3):
            coefficient = COEFFICIENTS[worker][part]
            left = 82 + 36 * part
            top = 20 + 29 * worker
            if coefficient == "0":
                drawn.append(box(left, top, 32, 25, 'stroke-opacity="0.35"'))
                drawn.append(text(left + 16, top + 17, "0"))
            else:
                drawn.append(block(left, top, 32, 25, PARTS[part]))
                drawn.append(text(left + 16, top + 17, coefficient, "#fff"))
    return "".join(drawn)


def draw_decoding() -> str:
    """Two messages with weights become the gradient of all parts."""
    drawn = [
        text(24, 41, "2 ×"),
        message_bar(42, 27, 44, 0),
        text(22, 85, "−1 ×"),
        message_bar(42, 71, 44, 1),
        arrow("M94 56 H128"),
    ]
    for part, color in enumerate(PARTS):
        drawn.append(block(138, 38 + 12 * part, 52, 12, color))
    drawn.append(text(164, 92, "gradient"))
    return "".join(drawn)


def draw_waiting_rule() -> str:
    """Times of three workers; the round ends after the second."""
    drawn = []
    for worker, seconds in enumerate((62, 92, 156)):
        y = 22 + 27 * worker
        drawn.append(text(14, y + 5, str(worker + 1)))
        is_late = worker == 2
        color = RED if is_late else INK
        dashes = 'stroke-dasharray="5 4"' if is_late else ""
        drawn.append(line(f"M28 {y} H{28 + seconds}", color, dashes))
        drawn.append(f'<circle cx="{28 + seconds}" cy="{y}" r="4.5" fill="{color}"/>')
    drawn.append(line("M128 8 V92", style='stroke-dasharray="2 3"'))
    drawn.append(text(128, 106, "enough: the round ends", size=12))
    return "".join(drawn)


def draw_mask() -> str:
    """One truth value per worker."""
    drawn = []
    for worker, responded in enumerate((True, True, False)):
        left = 20 + 56 * worker
        make_box = box if responded else straggler_box
        drawn.append(make_box(left, 24, 48, 40))
        mark = "M{0} 45 l7 8 l13 -18" if responded else "M{0} 36 l16 16 m0 -16 l-16 16"
        color = PARTS[1] if responded else RED
        drawn.append(line(mark.format(left + (14 if responded else 16)), color))
        drawn.append(text(left + 24, 86, "True" if responded else "False"))
    return "".join(drawn)


# Functions that draw the pictures, by word, in the order of the home page.
WORDS = {
    "worker": draw_worker,
    "part": draw_part,
    "message": draw_message,
    "round": draw_round,
    "code": draw_code,
    "decoding": draw_decoding,
    "waiting-rule": draw_waiting_rule,
    "mask": draw_mask,
}


def picture(content: str, width: int = WIDTH, height: int = HEIGHT) -> str:
    """Returns a whole SVG file."""
    head = (
        '<defs><marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" '
        f'markerHeight="7" orient="auto"><path d="M0 0 10 5 0 10z" fill="{INK}"/>'
        "</marker></defs>"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="system-ui, sans-serif" '
        f'text-anchor="middle">{head}{content}</svg>\n'
    )


if __name__ == "__main__":
    for word, draw in WORDS.items():
        FOLDER.joinpath(f"{word}.svg").write_text(picture(draw()), encoding="utf-8")
