"""Run by `check.py` where torch and ranksort alone are installed: the losses against golden numbers, and what is said of the rest.

The first argument is a JSON file with the golden cases, because there is no numpy here to read them.
"""

import json
import subprocess
import sys
import warnings
from importlib.metadata import distributions, version
from pathlib import Path

import torch

import ranksort

TOOLBOX = {"torchvision", "numpy", "pytorch-lightning", "tyro", "matplotlib", "pillow", "pycocotools", "timm", "rich"}


def close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    """To `tolerance` times the largest of the expected values."""
    torch.testing.assert_close(
        actual.double(), expected, rtol=0, atol=tolerance * max(float(expected.abs().max()), 1.0)
    )


def check(case: dict[str, list[float]], kind: str, dtype: torch.dtype, tolerance: float) -> None:
    """The loss and its gradient by the logits are those of the published code."""
    values = {name: torch.tensor(value, dtype=torch.float64) for name, value in case.items()}
    logits = values["logits"].to(dtype).requires_grad_()
    targets, delta = values["targets"].to(dtype), float(values["delta"])
    if kind == "ranksort":
        ranking, sorting = ranksort.rank_sort_loss(logits, targets, delta=delta)
        loss, expected = torch.stack([ranking, sorting]), torch.stack([values["ranking_loss"], values["sorting_loss"]])
    elif kind == "ap":
        loss, expected = ranksort.average_precision_loss(logits, targets, delta=delta), values["loss"]
    else:
        errors = values["regression_losses"].to(dtype)
        loss, expected = ranksort.average_lrp_loss(logits, targets, errors, delta=delta).classification, values["loss"]
    loss.sum().backward()
    close(loss.detach(), expected, tolerance)
    assert logits.grad is not None
    scale = values["grad"].abs().max().clamp(min=1e-12)
    close(logits.grad / scale, values["grad"] / scale, tolerance)


def main() -> None:
    warnings.filterwarnings("ignore", message="Failed to initialize NumPy")  # which PyTorch can do without
    installed = {d.metadata["Name"].lower().replace("_", "-") for d in distributions()}
    assert not TOOLBOX & installed, f"this is to run with torch alone, but {TOOLBOX & installed} are installed"
    assert "site-packages" in ranksort.__file__, f"the installed wheel is to be tested, not {ranksort.__file__}"
    assert version("ranksort") == ranksort.__version__

    cases = json.loads(Path(sys.argv[1]).read_text())
    for name, case in cases.items():
        kind = name.split("_")[0]
        for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
            try:
                check(case, kind, dtype, tolerance)
            except AssertionError as error:
                raise AssertionError(f"{name} in {dtype}: {error}") from None
    assert {name.split("_")[0] for name in cases} == {"ranksort", "ap", "alrp"}

    said = ""
    try:
        _ = ranksort.create_model
    except ModuleNotFoundError as error:
        said = str(error)
    assert 'pip install "ranksort[detection]"' in said, f"create_model without the toolbox: {said or 'no error'}"
    for command in ([sys.executable, "-m", "ranksort"], [str(Path(sys.executable).with_name("ranksort"))]):
        said = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True).stdout
        assert said == f"ranksort {ranksort.__version__}\n", said
        done = subprocess.run([*command, "recipes"], capture_output=True, text=True)
        assert done.returncode, "a command runs without the toolbox"
        assert done.stderr == 'ranksort: the command line belongs to the toolbox: pip install "ranksort[detection]"\n'
    print(f"torch {torch.__version__} alone: {len(cases)} golden cases agree in float32 and float64")


if __name__ == "__main__":
    main()
