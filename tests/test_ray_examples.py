"""Programs in `examples` and on a page, run as a user runs them, in a small size."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SMALL = (
    *("--parts", "4", "--rows", "2", "--context", "16", "--width", "16"),
    *("--layers", "1", "--heads", "2", "--evaluate-every", "3", "--no-live"),
)


def train(folder, num_steps, num_workers):
    """Runs `examples/train.py`, and returns its output."""
    command = [sys.executable, ROOT / "examples" / "train.py", "--folder", folder]
    command += ["--steps", str(num_steps), "--workers", str(num_workers), *SMALL]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.weekly
def test_training_goes_on_with_another_number_of_workers(tmp_path):
    said = train(tmp_path, num_steps=3, num_workers=2)
    assert "step 3: " in said
    said = train(tmp_path, num_steps=6, num_workers=3)
    assert "step 6: " in said
    assert "step 3: " not in said
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5, 6]


def test_page_of_the_script_installs_what_it_imports():
    page = (ROOT / "docs" / "cluster" / "start-here.md").read_text(encoding="utf-8")
    script = (ROOT / "examples" / "train.py").read_text(encoding="utf-8")
    [command] = re.findall(
        r"^\$ (pip install .*)\n\$ python examples/train\.py", page, re.MULTILINE
    )
    assert command in script
    extra, *packages = command.removeprefix('pip install ".[').split()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = project["dependencies"]
    required += project["optional-dependencies"][extra.removesuffix(']"')]
    installed = {re.split(r"[>=]", name)[0] for name in required} | {*packages}
    imported = set(re.findall(r"^(?:import|from) (\w+)", script, re.MULTILINE))
    assert imported - sys.stdlib_module_names - {"jaxwgc"} <= installed


@pytest.mark.weekly
def test_page_for_those_who_come_from_elsewhere_is_a_program(tmp_path):
    """Its blocks with real workers do not run in `test_documentation.py`."""
    page = (ROOT / "docs" / "coming-from-elsewhere.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert sum("RayCluster(" in block for block in blocks) == 2
    script = tmp_path / "page.py"
    check = "print(np.max(errors) < 1e-12, float(ours.max()) < 1e-5, weights.shape)"
    script.write_text("\n".join([*blocks, check]), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    *fits, checked = done.stdout.splitlines()
    fits = [re.findall(r"\d", fit) for fit in fits if fit.startswith("[")]
    assert fits == [list("01234")] * 3
    assert checked == "True True (1000, 12)"
