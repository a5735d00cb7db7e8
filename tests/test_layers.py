"""Arrows between the rooms of the library go one way."""

import ast
import pathlib

ROOT = pathlib.Path(__file__).parents[1] / "jaxwgc"
# Each room, and those above it here that it may import from; files that start with an
# underscore at the top are for all.
ROOMS = {
    "decoders": "",
    "sketching": "",
    "codes": "decoders",
    "stragglers": "decoders codes",
    "coding": "decoders stragglers codes",
    "corruptions": "stragglers codes coding",
    "gradients": "decoders stragglers codes coding",
    "aggregate": "decoders stragglers codes coding corruptions",
    "block_leverage": "decoders stragglers sketching codes coding gradients aggregate",
    "checks": "decoders stragglers sketching codes coding gradients aggregate",
    "studies": "decoders stragglers codes coding aggregate",
    "distributed": "decoders stragglers codes coding gradients aggregate studies",
}
KNOWS = {room: set(others.split()) for room, others in ROOMS.items()}


def imported(path):
    """Names of the library's own modules that a file imports, at any depth."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            for alias in node.names:
                yield f"{node.module}.{alias.name}"


def files_of(room):
    package = ROOT / room
    return sorted(package.rglob("*.py")) if package.is_dir() else [ROOT / f"{room}.py"]


def arrows():
    for room in KNOWS:
        for path in files_of(room):
            for name in imported(path):
                parts = name.split(".")
                if parts[0] == "jaxwgc":
                    yield room, path, parts[1:]


def test_the_table_lists_every_room():
    result = {
        path.stem
        for path in ROOT.iterdir()
        if not path.name.startswith("_") and (path.suffix == ".py" or path.is_dir())
    }
    assert result == set(KNOWS)
    rooms = list(KNOWS)
    assert all(KNOWS[room] <= {*rooms[:place]} for place, room in enumerate(rooms))


def test_no_room_imports_a_higher_room():
    wrong = [
        f"{path.relative_to(ROOT)} imports jaxwgc.{'.'.join(parts)}"
        for room, path, parts in arrows()
        if parts[0] != room and parts[0] not in KNOWS[room]
        if not parts[0].startswith("_")
    ]
    assert not wrong


def test_private_files_stay_in_their_rooms():
    wrong = [
        f"{path.relative_to(ROOT)} imports jaxwgc.{'.'.join(parts)}"
        for room, path, parts in arrows()
        if parts[0] in KNOWS
        and parts[0] != room
        and any(part.startswith("_") for part in parts)
    ]
    assert not wrong


def test_files_for_all_rooms_import_no_room():
    for path in ROOT.glob("_*.py"):
        if path.name == "__init__.py":
            continue
        rooms = [name.split(".")[1] for name in imported(path) if "jaxwgc." in name]
        assert all(room.startswith("_") for room in rooms), path
