"""A report of a failure names its cause: real reports, made by a failing notebook and a failing test."""

import subprocess
import sys
from pathlib import Path

import failures
import helpers
import nbformat


def report(tmp_path: Path, *words: str) -> list[str]:
    """What is told of a pytest run."""
    path = tmp_path / "report.xml"
    options = ["-q", "-p", "no:cacheprovider", "--rootdir", tmp_path, "--junitxml", path]
    command = [sys.executable, "-m", "pytest", *options, *words]
    done = subprocess.run(command, cwd=tmp_path, env=helpers.clean_environment(), check=False)
    assert done.returncode == 1
    return failures.told(path)


def test_a_cell_that_fails_shows_its_claim_once(tmp_path: Path) -> None:
    cells = ["from natslab import check", "x = 3\ncheck('three is four', x == 4)", "print(y)"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbformat.write(notebook, tmp_path / "bad.ipynb")
    told = report(tmp_path, "--nbval", "--nbval-current-env", "bad.ipynb")
    assert "    CheckFailed: ✘ three is four" in told
    assert "      x = 3" in told
    assert not any("NameError" in line for line in told)  # of the cells that fail for that reason


def test_a_test_that_fails_shows_what_was_not_true(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text("def test_it():\n    x = 3\n    assert x == 4\n")
    assert report(tmp_path) == ["✘ test_it test_it", "    E       assert 3 == 4"]
