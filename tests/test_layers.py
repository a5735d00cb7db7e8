"""Arrows between the rooms of the library go one way."""

import ast
import graphlib
import importlib
import pathlib

ROOT = pathlib.Path(__file__).parents[1] / "jaxwgc"
# Each room, and those above it here that it may import from; `_common` is for all.
ROOMS = {
    "_common": "",
    "parts": "",
    "decoders": "",
    "codes": "decoders",
    "traces": "",
    "stragglers": "decoders codes traces",
    "coding": "decoders codes stragglers",
    "gradients": "decoders codes stragglers coding",
    "corruptions": "codes stragglers coding",
    "aggregate": "parts decoders codes stragglers coding gradients corruptions",
    "simulation": "decoders codes stragglers coding",
    "planning": "decoders codes stragglers coding aggregate simulation",
    "asynchronous": "codes stragglers gradients aggregate simulation",
    "reports": "traces",
    "checks": "parts decoders codes stragglers coding gradients aggregate",
    "distributed": """decoders codes traces stragglers coding gradients aggregate
        reports""",
    "sketching": "parts",
}
KNOWS = {room: {"_common", *others.split()} for room, others in ROOMS.items()}


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
        path.stem for path in ROOT.iterdir() if path.suffix == ".py" or path.is_dir()
    }
    assert result - {"__init__", "__main__", "__pycache__"} == set(ROOMS)
    above: set[str] = set()
    for room, others in ROOMS.items():
        assert set(others.split()) <= above
        above.add(room)


def test_no_room_imports_a_higher_room():
    wrong = [
        f"{path.relative_to(ROOT)} imports jaxwgc.{'.'.join(parts)}"
        for room, path, parts in arrows()
        if parts[0] != room and parts[0] not in KNOWS[room]
    ]
    assert not wrong


def public_names(room):
    module = importlib.import_module(f"jaxwgc.{room}")
    return {*getattr(module, "__all__", ())}


def test_public_names_are_imported_from_their_room():
    """What a room shows to other rooms alone, they import from its file."""
    wrong = [
        f"{path.relative_to(ROOT)} imports jaxwgc.{'.'.join(parts)}"
        for room, path, parts in arrows()
        if parts[0] != room and len(parts) > 2 and parts[-1] in public_names(parts[0])
    ]
    assert not wrong


def test_rooms_list_what_they_import():
    """A name without an entry in `__all__` would be public by accident."""
    for path in ROOT.glob("*/__init__.py"):
        room = path.parent.name
        files = f"jaxwgc.{room}."
        names = {
            name.rpartition(".")[2] for name in imported(path) if name.startswith(files)
        }
        assert names <= public_names(room), room


def files_of_imports():
    """Files that each file imports, those for type checkers included."""
    files = {}
    for path in ROOT.rglob("*.py"):
        module = path.relative_to(ROOT.parent).with_suffix("")
        files[".".join(module.parts).removesuffix(".__init__")] = path
    for module, path in files.items():
        modules = set()
        for name in imported(path):
            while name.startswith("jaxwgc") and name not in files:
                name = name.rpartition(".")[0]
            if name in files and name != module:
                modules.add(name)
        yield module, modules


def test_no_files_import_each_other_in_a_circle():
    graphlib.TopologicalSorter(dict(files_of_imports())).prepare()
