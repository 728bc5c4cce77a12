"""Run by `check.py` where the toolbox is installed: what a user does on the first day, from the commands and from Python."""

import json
import re
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

import ranksort

NAMES = ("torch", "torchvision", "numpy", "pytorch-lightning", "timm", "pillow", "matplotlib", "tyro", "scipy")


def run(*arguments: str | Path, module: bool = False) -> str:
    """What a command prints; it has to succeed."""
    script = [sys.executable, "-m", "ranksort"] if module else [str(Path(sys.executable).with_name("ranksort"))]
    done = subprocess.run([*script, *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        raise AssertionError(
            f"ranksort {' '.join(map(str, arguments))}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        )
    return done.stdout


def check_commands() -> None:
    assert run("--version") == run("--version", module=True) == f"ranksort {version('ranksort')}\n"
    assert "quickstart" in run("--help")
    listed = run("recipes")
    assert all(name in listed for name in ranksort.list_recipes())


def check_evaluation(folder: Path) -> None:
    """Two objects: one is found exactly, and the best detection of all is wrong. Precision at the one recall reached is 1/2."""
    truth = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 100, "height": 100}],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": 1, "bbox": box, "area": 400, "iscrowd": 0}
            for i, box in enumerate([[10, 10, 20, 20], [50, 50, 20, 20]], 1)
        ],
        "categories": [{"id": 1, "name": "cell"}],
    }
    found = [
        {"image_id": 1, "category_id": 1, "bbox": [75, 5, 20, 20], "score": 0.9},
        {"image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20], "score": 0.8},
    ]
    (folder / "truth.json").write_text(json.dumps(truth))
    (folder / "found.json").write_text(json.dumps(found))
    report = ranksort.evaluate_detections(folder / "truth.json", folder / "found.json").as_dict()
    assert abs(report["AP"] - 0.5 * 51 / 101) < 1e-9, report  # 51 of the 101 recalls are up to 1/2
    run("evaluate", folder / "truth.json", folder / "found.json", "--out", folder / "page")
    assert (folder / "page" / "index.html").stat().st_size > 20_000


def check_models() -> None:
    """A model with trained weights of its backbone takes a step, and predicts from uint8 and float images."""
    torch.manual_seed(0)
    image = torch.rand(3, 96, 128)
    boxes = torch.tensor([[10.0, 10.0, 60.0, 50.0]])
    masks = torch.zeros(1, 96, 128, dtype=torch.uint8)
    masks[0, 10:50, 10:60] = 1
    target = {"boxes": boxes, "labels": torch.tensor([1]), "masks": masks}
    for recipe in (
        "ranksort_atss_lite0_small",
        "ranksort_mask_rcnn_lite0_small",
        "ranksort_solov2_light_448_r34_fpn_3x",
    ):
        trained = recipe.endswith("lite0_small")
        model = ranksort.create_model(recipe, num_classes=3, pretrained_backbone=trained, min_size=96, max_size=160)
        sum(model([image], [target]).values()).backward()
        assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.parameters())
        model.eval()
        found = model([image, (image * 255).to(torch.uint8)])
        assert len(found) == 2
        assert all(d["boxes"].shape == (len(d["scores"]), 4) for d in found)
        assert ("masks" in found[0]) == ("mask" in recipe or "solo" in recipe)


def check_quickstart(folder: Path) -> None:
    """Trains, reports, predicts, calibrates and evaluates again: an epoch is enough to find most of the drawn objects."""
    said = run("quickstart", "--epochs", "1", "--workers", "0", "--out", folder / "quickstart")
    run_folder = next((folder / "quickstart" / "runs").glob("*/*"))
    assert (run_folder / "report" / "index.html").is_file()
    data = folder / "quickstart" / "data"
    assert "Next:" in said, said
    everything = ["--annotations", val_file(data), "--score-threshold", "0"]
    run("predict", run_folder, data / "images", "--out", folder / "found", *everything)
    results = folder / "found" / "results_bbox.json"
    again = run("evaluate", val_file(data), results, "--out", folder / "again")
    assert re.search(r"\boLRP\b", again), again
    run("calibrate", val_file(data), results, "--out", folder / "calibration.json")
    model = ranksort.load_model(run_folder)
    (prediction,) = model.predict(sorted((data / "images").iterdir())[:1])
    assert isinstance(prediction.boxes, np.ndarray), type(prediction.boxes)
    print(f"quickstart, 1 epoch: {summary(again)}")


def val_file(data: Path) -> Path:
    return next((data / "annotations").glob("*val*.json"))


def summary(said: str) -> str:
    """The line of a report with AP."""
    return next(line.strip() for line in said.splitlines() if line.strip().startswith("AP "))


def main() -> None:
    assert "site-packages" in ranksort.__file__, f"the installed wheel is to be tested, not {ranksort.__file__}"
    print(", ".join(f"{name} {version(name)}" for name in NAMES), flush=True)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        check_commands()
        check_evaluation(Path(folder))
        check_models()
        check_quickstart(Path(folder))
    print("the toolbox works: commands, evaluation, models, quickstart, prediction, calibration")


if __name__ == "__main__":
    main()
