"""The code of the README and of the pages runs as it stands there."""

import importlib.util
import pathlib
import re
import sys
import tomllib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [
    "README.md",
    "docs/api/distributed.md",
    "docs/codes.md",
    "docs/cluster/local-steps.md",
    "docs/coming-from-elsewhere.md",
    "docs/getting-started.md",
    "docs/if-something-looks-wrong.md",
    "docs/recipes.md",
    "docs/sketching.md",
    "docs/weights.md",
]


def hook(name):
    """Returns the module docs/hooks/NAME.py."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"docs/hooks/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tables():
    # The hooks put folders on the path, to import each other and the experiments.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", list(sys.path))
        yield hook("tables")


def blocks_of(page):
    """The Python blocks of a page and the lines they start in."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [
        (text[: match.start(1)].count("\n") + 1, match.group(1))
        for match in re.finditer(r"^```python[^\n]*\n(.*?)^```$", text, re.M | re.S)
    ]


@pytest.mark.parametrize("page", PAGES)
def test_blocks_run_in_order(page, tmp_path, monkeypatch):
    # Blocks may write files.
    monkeypatch.chdir(tmp_path)
    blocks = blocks_of(page)
    assert blocks
    namespace = {"__name__": page}
    for line, code in blocks:
        # Padded, so that a traceback names the line of the page.
        exec(compile("\n" * (line - 1) + code, str(ROOT / page), "exec"), namespace)


def test_first_example_of_the_readme_is_short():
    """It has at most 25 lines, an optax chain, a loss and a result."""
    [code] = [code for _, code in blocks_of("README.md") if "coded_aggregate" in code]
    assert len(code.splitlines()) < 25
    for part in ("def loss(", "optax.chain(", "coded_aggregate(", "\nprint("):
        assert part in code


def test_pages_agree_with_the_results(tables):
    """`python docs/hooks/tables.py` has been run since the last `make measure`.

    An include line would be filled in on the site alone, and not on GitHub.
    """
    texts = {
        page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8")
        for page in tables.PAGES
    }
    assert tables.BLOCK.search(texts["README.md"])
    assert sum(len(tables.BLOCK.findall(text)) for text in texts.values()) >= 100
    assert {claim.page for claim in tables.claims.CLAIMS} <= texts.keys()
    for name, text in texts.items():
        assert not [*tables.problems(text, name)]
        assert not re.search(r'--8<-- "(docs/results|README)', text), name
        # Markdown takes a line that begins with a comment for HTML.
        assert not re.search(r"^\s*<!-- = ", text, re.M), name


def test_stale_numbers_and_sentences_are_reported(tables):
    page = "docs/planning.md"
    text = "<!-- = 2 / 3 -->0.66<!-- end --> <!-- plan_ways -->\n<!-- end -->"
    number, table, sentence, *_ = tables.problems(text, page)
    assert number == f"{page} says 0.66; 2 / 3 is 0.67 by the results"
    assert table == f"{page}: the table plan_ways is not that of the results"
    assert sentence.startswith(f"{page} no longer says ")
    assert tables.filled(text, page).startswith("<!-- = 2 / 3 -->0.67<!-- end -->")


@pytest.mark.parametrize(
    ("expression", "printed", "expected"),
    [
        ("1 / 3", "0.51", "0.33"),
        ("12345.6", "1", "12,346"),
        ("0.345", "12.0%", "34.5%"),
        ("2.34e-5", "1.0e-06", "2.3e-05"),
        ("2.34e-5", r"$1.0 \cdot 10^{-6}$", r"$2.3 \cdot 10^{-5}$"),
        ("-0.25", "1.00", "-0.25"),
    ],
)
def test_numbers_keep_their_notation(tables, expression, printed, expected):
    text = "<!-- = {} -->{}<!-- end -->"
    filled = tables.filled(text.format(expression, printed), "page.md")
    assert filled == text.format(expression, expected)


def test_an_error_in_an_expression_names_the_page(tables):
    with pytest.raises(ValueError, match=r"page\.md: cannot compute unknown\(1\)"):
        tables.filled("<!-- = unknown(1) -->1<!-- end -->", "page.md")


def test_versions_are_those_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    python = project["requires-python"].removeprefix(">=")
    [jax_version] = [
        name.removeprefix("jax>=")
        for name in project["dependencies"]
        if name.startswith("jax>=")
    ]
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"With Python {python} or newer" in text
    assert f"jax {jax_version} or newer" in text


def test_fences_are_closed():
    """An open fence would hide the blocks after it."""
    for page in PAGES:
        fences = re.findall(r"^\s*```", (ROOT / page).read_text(encoding="utf-8"), re.M)
        assert len(fences) % 2 == 0


def cells_of(path):
    """Returns the heads and the bodies of the cells of a notebook kept as text."""
    text = path.read_text(encoding="utf-8")
    before, *cells = re.split(r"^# %%", text, flags=re.MULTILINE)
    assert before == ""
    parted = [cell.partition("\n") for cell in cells]
    return [(head.strip(), body) for head, _, body in parted]


@pytest.mark.parametrize(
    "path", sorted((ROOT / "docs/tutorials").glob("*.*")), ids=lambda path: path.stem
)
def test_tutorials_are_short_texts(path):
    """They are run when the site is built, with the kernel of that environment."""
    assert path.suffix == ".py"
    cells = cells_of(path)
    assert cells[0][1].startswith("# # ")
    num_words = 0
    for head, body in cells:
        if head == "[markdown]":
            num_words += len(re.sub("^#", "", body, flags=re.MULTILINE).split())
            continue
        compile(body, str(path), "exec")
        # A figure needs words for those who do not see it.
        is_figure = "plt.show()" in body
        assert bool(re.fullmatch('alt="[^"]+"', head)) == is_figure
        assert is_figure or head == ""
    assert num_words <= 400


def test_each_code_of_the_table_has_a_picture():
    """`python docs/hooks/code_pictures.py` has been run since the last new code.

    That each constructor has a row is a condition of docs/hooks/lists.py.
    """
    rows = hook("code_rows").code_rows()
    pictures = {path.stem for path in (ROOT / "docs/images/codes").glob("*.svg")}
    assert pictures == rows.keys()
    for name, row in rows.items():
        is_approximate = row.tolerates in {"approximate", "unbiased", "recovers parts"}
        if is_approximate:
            assert row.example.num_stragglers == 0, name


def test_pictures_of_the_eight_words_are_those_that_are_drawn():
    """`python docs/hooks/word_pictures.py` has been run since its last change."""
    pictures = hook("word_pictures")
    home = (ROOT / "docs/index.md").read_text(encoding="utf-8")
    for word, draw in pictures.WORDS.items():
        path = ROOT / f"docs/images/words/{word}.svg"
        assert path.read_text(encoding="utf-8") == pictures.picture(draw()), word
        assert f'<div id="{word}" markdown>' in home
        assert f"images/words/{word}.svg" in home


def test_picture_of_the_idea_is_the_one_that_is_drawn(monkeypatch):
    """`python docs/hooks/idea_picture.py` has been run since its last change."""
    # The module puts its folder on the path, to import word_pictures.
    monkeypatch.setattr(sys, "path", list(sys.path))
    path = ROOT / "docs/images/idea.svg"
    assert path.read_text(encoding="utf-8") == hook("idea_picture").draw_idea()
    for page, address in (
        ("README.md", "docs/images/idea.svg"),
        ("docs/index.md", "images/idea.svg"),
    ):
        assert f"]({address})" in (ROOT / page).read_text(encoding="utf-8")
