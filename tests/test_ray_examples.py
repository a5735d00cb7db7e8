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


@pytest.mark.weekly
def test_diloco_among_faults_is_that_of_one_process(tmp_path):
    """In a small model, and with a worker killed and one frozen."""
    command = [sys.executable, "-m", "examples.diloco", "--folder", tmp_path]
    command += ["--rounds", "8", "--local-steps", "2", "--faults", "2", "--compare"]
    command += [option for option in SMALL[:-3] if option not in ("--parts", "4")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "SIGKILL to worker 0" in done.stdout
    assert "round 8: mean loss of the local steps" in done.stdout
    [distance] = re.findall(r"from one process: (.*)", done.stdout)
    assert float(distance) < 1e-5


def test_page_of_the_script_installs_what_it_imports():
    path = ROOT / "docs" / "cluster" / "several-machines.md"
    page = path.read_text(encoding="utf-8")
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


def run_page(name, num_clusters, check, folder):
    """Runs the blocks of a page and a check as a program; returns the printed lines."""
    page = (ROOT / "docs" / name).read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert sum("RayCluster(" in block for block in blocks) == num_clusters
    script = folder / "page.py"
    script.write_text("\n".join([*blocks, check]), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, script], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    # Ray prints of processes that end.
    return [line for line in done.stdout.splitlines() if "(raylet)" not in line]


@pytest.mark.weekly
def test_page_of_local_steps_is_a_program(tmp_path):
    """Sums on workers are those of NumPy, and both ways to train find the solution."""
    check = """
if __name__ == "__main__":
    found = [own["w"] for own in (simulated, state.params)]
    print(np.abs(found - np.arange(5)).max() < 0.1)
    gradients = -2 * x * parts["y"][..., None]
    print(np.allclose(np.sum(gradients**2, (0, 1)), diagonal["w"], rtol=1e-3))
"""
    trained, *checked, squared, found, agrees = run_page(
        "cluster/local-steps.md", 4, check, tmp_path
    )
    assert checked[0] == "no problems found"
    assert re.findall(r"\d", trained) == list("01234")
    assert float(squared) < 1e-2
    assert found == agrees == "True"


@pytest.mark.weekly
def test_page_for_those_who_come_from_elsewhere_is_a_program(tmp_path):
    """Its blocks with real workers do not run in `test_documentation.py`."""
    check = "print(np.max(errors) < 1e-12, float(ours.max()) < 1e-5, weights.shape)"
    *fits, checked = run_page("coming-from-elsewhere.md", 2, check, tmp_path)
    fits = [re.findall(r"\d", fit) for fit in fits if fit.startswith("[")]
    assert fits == [list("01234")] * 3
    assert checked == "True True (1000, 12)"
