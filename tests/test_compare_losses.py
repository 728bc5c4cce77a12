"""`benchmarks/compare_losses.py`: which cells it runs, with what settings, and which of them its table shows."""

import copy
import importlib.util
import json
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ranksort.data.synthetic import write_synthetic_dataset
from ranksort.recipes import Recipe

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "compare_losses.py"
pytestmark = pytest.mark.skipif(not SCRIPT.is_file(), reason="the benchmarks/ of a checkout are not here")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("compare_losses", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(
    script: ModuleType, tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict[str, Any]]:
    """Runs a cell of an epoch of the tiny recipe, on the data in a folder."""
    monkeypatch.setattr("ranksort.recipes.get_recipe", lambda _: copy.deepcopy(tiny_recipe))
    options = Namespace(results=tmp_path / "results.jsonl", workers=0, detector=None, backbone_rate=1.0, jobs=1)
    cell = {"recipe": "tiny", "epochs": 1, "min_size": 64, "batch_size": None, "loss": "focal", "rate": 3.0, "seed": 0}

    def run(root: Path) -> dict[str, Any]:
        return script.run(root, options, {"data": root.name} | cell)

    return run


def _folder(tmp_path: Path, root: Path) -> Path:
    return tmp_path / f"{root.name}-tiny-1-64-None-focal-3.0-0"


def test_a_short_run_has_the_rate_that_the_table_says(
    run: Callable[..., dict[str, Any]], tiny_recipe: Recipe, tiny_data: Path, tmp_path: Path
) -> None:
    """Milestones were rounded down to epoch 0, after which one epoch was trained at a hundredth of the rate."""
    tiny_recipe.training.epochs, tiny_recipe.optimizer.milestones = 12, (9, 11)
    result = run(tiny_data)
    assert result["lr"] == pytest.approx(3 * tiny_recipe.optimizer.lr)
    recorded = json.loads((_folder(tmp_path, tiny_data) / "recipe.json").read_text())
    assert recorded["optimizer"]["lr"] == result["lr"]
    assert recorded["optimizer"]["milestones"] == []


def test_a_run_stopped_before_its_first_checkpoint_is_run_again(
    run: Callable[..., dict[str, Any]], tiny_data: Path, tmp_path: Path
) -> None:
    folder = _folder(tmp_path, tiny_data)
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "recipe.json").write_text("{}")
    assert run(tiny_data)["val"]["AP"] is not None
    assert (folder / "checkpoints" / "last.ckpt").is_file()


def test_results_are_not_those_of_other_data_in_a_folder_of_the_same_name(
    run: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    roots = [
        write_synthetic_dataset(tmp_path / where / "data", train_images=4, val_images=2, image_size=(96, 80), seed=seed)
        for seed, where in enumerate(("one", "other"))
    ]
    result = run(roots[0])
    assert run(roots[0]) == result  # from the file
    with pytest.raises(ValueError, match="results of other training data in a folder named data: rename the folder"):
        run(roots[1])
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    assert len(lines) == 1
    without = {key: value for key, value in json.loads(lines[0]).items() if key != "fingerprint"}
    (tmp_path / "results.jsonl").write_text(f"{json.dumps(without)}\n")
    assert run(roots[0]) == without  # as written by older versions


def test_two_folders_of_the_same_name_are_refused(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    roots = [str(tmp_path / where / "data") for where in ("one", "other")]
    monkeypatch.setattr(sys, "argv", ["compare_losses.py", *roots])
    with pytest.raises(SystemExit) as end:
        script.main()
    assert end.value.code == 2
    assert "by the names of the data sets' folders: give each another name" in capsys.readouterr().err


def _cell(seed: int, rate: float, ap: float) -> dict[str, Any]:
    settings = {"data": "set", "recipe": "tiny", "epochs": 1, "min_size": 64, "batch_size": None, "loss": "focal"}
    numbers = {"AP": ap, "AP_rare": ap, "oLRP": 100 - ap}
    return settings | {
        "rate": rate,
        "seed": seed,
        "lr": rate / 1000,
        "val": numbers,
        "seconds_per_step": 0.1,
        "device": "-",
    }


def test_the_table_shows_the_rate_that_was_chosen_whatever_was_run_before(script: ModuleType) -> None:
    """A single cell of another seed, run first, decided on the rate, so that the other seeds at the best one were left out."""
    single, tried = _cell(7, 1, 20), [_cell(0, rate, ap) for rate, ap in ((0.3, 10), (1, 20), (3, 30))]
    others = [_cell(seed, 3, 30) for seed in (1, 2)]
    for cells in ([single, *tried, *others], [*tried, *others, single]):
        (line,) = (line for line in script.table(cells).splitlines() if line.startswith("| focal"))
        assert line == (
            "| focal | 30.0 ± 0.0 | 30.0 ± 0.0 | 70.0 ± 0.0 | - | 0.100 | 3 | 0.0003: 10.0, 0.001: 20.0, 0.003: 30.0 |"
        )


def test_of_equal_rates_the_table_shows_the_one_that_the_other_seeds_were_run_with(script: ModuleType) -> None:
    cells = [_cell(0, 3, 20), _cell(0, 1, 20)]  # in the order in which two jobs at a time may end
    assert script.best_rate(cells) == script.best_rate(reversed(cells)) == 1
    assert script.row([*cells, _cell(1, 1, 21)], "val")[5] == "2"
