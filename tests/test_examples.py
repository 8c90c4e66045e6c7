"""What is shown runs: the Python of the pages with the output printed under it, experiments, notebooks."""

import contextlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jupytext
import nbclient
import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXPERIMENTS = sorted((ROOT / "experiments").glob("*.py"))
RESULTS = sorted((ROOT / "experiments" / "results").glob("*.json"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))
BLOCK = re.compile(r"^```python\n(?P<code>.*?)^```\n(?:\n*```text\n(?P<output>.*?)^```\n)?", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?")
TOLERANCE = 0.01
"""Relative, or one unit in the last digit shown: pages are written in float32, with any number of devices."""


def _blocks():
    """Python blocks with the output shown under them: all of the README, and those of other pages that show some.

    A page may also sketch what needs another machine, and shows no output then.
    """
    for path in PAGES:
        for number, found in enumerate(BLOCK.finditer(path.read_text())):
            if found["output"] is None and path.name != "README.md":
                continue
            marks = [pytest.mark.slow] if "codesign(" in found["code"] else []
            name = f"{path.relative_to(ROOT).as_posix()}-{number}"
            yield pytest.param(found["code"], found["output"], id=name, marks=marks)


def _paths(paths):
    return [pytest.param(path, id=path.stem) for path in paths]


def _agrees(shown, printed):
    """Whether two texts have the same words, and numbers within the tolerance."""
    if NUMBER.sub("#", shown).split() != NUMBER.sub("#", printed).split():
        return False
    pairs = zip(NUMBER.findall(shown), NUMBER.findall(printed), strict=True)
    return all(_close(*(word.replace(",", "") for word in pair)) for pair in pairs)


def _close(shown, printed):
    last_digit = 10.0 ** -len(shown.partition(".")[2]) if "." in shown else 0.0
    return float(printed) == pytest.approx(float(shown), rel=TOLERANCE, abs=last_digit)


def _environment():
    """The environment of a process that shares this one's compilation cache."""
    return os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir or ""),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "MPLBACKEND": "agg",
    }


# pages


@pytest.mark.parametrize(("code", "output"), list(_blocks()))
def test_page_prints_what_it_shows(code, output):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "page", "exec"), {"__name__": "page"})
    assert _agrees(output or "", printed.getvalue()), printed.getvalue()


def test_comparison_can_fail():
    assert _agrees("70,857 tokens/s, margin -1.7%\n", "70,900 tokens/s,  margin -1.7%")
    assert not _agrees("70,857 tokens/s", "72,000 tokens/s")
    assert not _agrees("-1.7%", "1.7%")
    assert not _agrees("binding memory 3", "binding power 3")
    assert not _agrees("5 x 8 dies", "5 x 7 dies")


def test_first_example_is_short():
    first = next(BLOCK.finditer((ROOT / "README.md").read_text()))
    assert len(first["code"].splitlines()) <= 15


# experiments


@pytest.mark.slow
@pytest.mark.parametrize("path", _paths(EXPERIMENTS))
def test_experiment_runs(path, tmp_path):
    command = [sys.executable, str(path), "--smoke"]
    done = subprocess.run(command, cwd=tmp_path, env=_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize("path", _paths(EXPERIMENTS))
def test_experiment_is_in_the_table(path):
    table = (ROOT / "experiments" / "README.md").read_text()
    rows = [line for line in table.splitlines() if line.startswith("|")]
    assert any(f"experiments/{path.name}" in row for row in rows)


@pytest.mark.parametrize("path", _paths(RESULTS))
def test_result_has_its_experiment_its_figure_and_its_command(path):
    command = f"python experiments/{path.stem}.py --out experiments/results"
    assert (ROOT / "experiments" / f"{path.stem}.py").is_file()
    assert path.with_suffix(".svg").is_file()
    assert command in (ROOT / "experiments" / "README.md").read_text()


# notebooks


def _cells(notebook):
    return [(cell.cell_type, cell.source.rstrip()) for cell in notebook.cells]


@pytest.mark.parametrize("path", _paths(NOTEBOOKS))
def test_notebook_is_in_step_with_its_script(path):
    notebook = nbformat.read(path.with_suffix(".ipynb"), as_version=4)
    assert _cells(notebook) == _cells(jupytext.read(path)), f"jupytext --sync {path}"
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    assert all(cell.execution_count for cell in code), "a cell was not executed"
    assert not [output for cell in code for output in cell.outputs if output.output_type == "error"]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("path", _paths(NOTEBOOKS))
def test_notebook_runs(path, tmp_path, monkeypatch):
    for name, value in _environment().items():
        monkeypatch.setenv(name, value)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(jupytext.read(path), timeout=600, kernel_name="python3", resources=resources).execute()
