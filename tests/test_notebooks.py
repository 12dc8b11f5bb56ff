"""The notebooks: every code cell runs, and what is committed is what a run left there."""

import contextlib
import io
import json
import re
import subprocess
import types

import matplotlib.pyplot as plt
import pytest
import tiny

import lunar_distill_jax as ld
from lunar_distill_jax import cli

NOTEBOOKS = sorted((tiny.REPOSITORY / "colab").glob("*.ipynb"))
by_name = pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])


def code_cells(path):
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


def run_here(command, **_):
    """Stands for `subprocess.run` of our command line: the same verb, in this process."""
    assert command[1:3] == ["-m", "lunar_distill_jax"]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main(command[3:])
    return types.SimpleNamespace(stdout=out.getvalue(), stderr=err.getvalue(), returncode=code)


@by_name
def test_every_cell_runs(path, tmp_path, monkeypatch):
    """In this process, and rendering at the size of other tests: what XLA compiled is shared."""
    monkeypatch.chdir(tmp_path)  # the cells change it themselves; this changes it back
    monkeypatch.setattr("tempfile.mkdtemp", lambda: str(tmp_path))
    monkeypatch.setattr(subprocess, "run", run_here)
    plt.switch_backend("agg")
    names = {"__name__": path.stem}
    for number, cell in enumerate(code_cells(path), 1):
        source = "".join(cell["source"]).replace("--size 96 ", "--size 64 ")
        source = source.replace('= 24, 64, "moonlet-student"', '= 2, 32, "test"')
        exec(compile(source, f"{path.name}, code cell {number}", "exec"), names)
    plt.close("all")


@by_name
def test_only_public_names_are_used(path):
    source = "\n".join("".join(cell["source"]) for cell in code_cells(path))
    assert set(re.findall(r"\bld\.(\w+)", source)) <= set(ld.__all__)
    assert re.findall(r".*import.*lunar_distill_jax.*", source) == [
        "import lunar_distill_jax as ld"
    ]


@by_name
def test_outputs_are_those_of_one_run_with_pictures(path):
    """`make notebooks` left them: in order, without an error, and light enough for a repository."""
    cells = code_cells(path)
    assert len(json.loads(path.read_text())["cells"]) < 15
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not any(output["output_type"] == "error" for output in outputs)
    assert not any(output.get("name") == "stderr" for output in outputs)
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 2
    assert path.stat().st_size < 1_000_000
