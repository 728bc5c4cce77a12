"""The notebooks in `examples/` run from top to bottom, with the packages installed here, and have no stored outputs."""

import os
import re
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

import ranksort

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))


@pytest.fixture(autouse=True)
def kernel_of_this_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel `python3` is this interpreter, which finds the same ranksort, with no settings of the user's."""
    package = str(Path(ranksort.__file__).parents[1])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])]))
    monkeypatch.setenv("JUPYTER_PATH", str(Path(sys.prefix) / "share" / "jupyter"))
    for name in ("JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path: Path, tmp_path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells), "strip the outputs"
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    found = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    text = "".join(output.get("text", "") for output in found)
    assert "Traceback" not in text, text  # of a command, which would not end the notebook
    assert "ranksort: " not in text, text  # the sentence of a command that failed
    assert any("image/png" in output.get("data", {}) for output in found), "no picture is shown"
    if path.stem == "your_own_data":
        assert number(r"AP50 +([\d.]+)", text) > 60, text
    else:  # training brings positives above negatives
        assert number(r", (\d+) in the last", text) < number(r"(\d+) in the first epoch", text) / 10, text


def number(pattern: str, text: str) -> float:
    """The last number that was printed in this way."""
    return float(re.findall(pattern, text)[-1])
