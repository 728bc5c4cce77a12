"""`ranksort predict` keeps what is done, whatever ends it."""

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forked import run_forked
from PIL import Image

from ranksort import cli
from ranksort.checkpoints import save_model
from ranksort.data.coco_columns import Category
from ranksort.evaluation.calibration import Calibrator, Curve
from ranksort.evaluation.calibration_file import save_calibrator
from ranksort.json_list import JsonList
from ranksort.models import ATSS
from ranksort.recipes import create_model, get_recipe


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = get_recipe("ranksort_atss_r50_fpn_1x_coco")
    recipe.model.backbone, recipe.model.channels = "timm/lcnet_035", 64
    recipe.model.min_size, recipe.model.max_size, recipe.model.score_threshold = 64, 128, 0.0
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "m.safetensors"
    save_model(path, create_model(recipe, num_classes=2), recipe, [Category(1, "Bär"), Category(2, "犬")])
    return path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(5):
        Image.new("RGB", (40 + number, 30), (50 * number, 90, 20)).save(folder / f"{number}.png")
    return folder


def arguments(model: Path, *images: Path, out: Path) -> list[str]:
    return ["predict", str(model), *map(str, images), "--out", str(out), "--score-threshold", "0"]


def detected(out: Path) -> list[str]:
    """The images whose detections are written, in their order."""
    images = {i["id"]: Path(i["file_name"]).name for i in json.loads((out / "images.json").read_text())["images"]}
    found = dict.fromkeys(d["image_id"] for d in json.loads((out / "results_bbox.json").read_text()))
    assert [*found] == [*images]
    return [*images.values()]


def pictures(out: Path) -> list[str]:
    return sorted(path.name for path in out.iterdir() if path.suffix not in (".json", ".csv"))


def test_json_list_is_whole_at_every_moment(tmp_path: Path) -> None:
    path, items = tmp_path / "list.json", []
    growing = JsonList(path)
    for more in ([], [{"a": 1, "b": [1, 2]}], [], [{"a": "ä\n"}, {"c": None}]):
        growing.extend(more)
        items += more
        assert json.loads(path.read_text()) == items
    growing.close()
    assert (
        path.read_text()
        == "[\n" + ",\n".join(json.dumps(item, separators=(",", ":"), ensure_ascii=False) for item in items) + "\n]\n"
    )


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_lose_nothing_that_is_done(
    model: Path,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
    code: int,
) -> None:
    forward, calls = ATSS.forward, []

    def interrupted(self: ATSS, *args: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), number)
        return forward(self, *args)

    monkeypatch.setattr(ATSS, "forward", interrupted)
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments(model, images, out=tmp_path / "out"))
    assert stopped.value.code == code
    assert detected(tmp_path / "out") == ["0.png", "1.png"]
    assert pictures(tmp_path / "out") == ["00000_0.jpg", "00001_1.jpg"]
    assert "the first 2 of 5 images" in capsys.readouterr().err


def test_a_mistyped_file_leaves_no_folder(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments(model, tmp_path / "clip.mp4", out=tmp_path / "out"))
    assert stopped.value.code == 2
    assert "there is no such file: " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_the_model_cannot_do_is_one_image(
    model: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    forward = ATSS.forward

    def small_memory(self: ATSS, *args: Any) -> Any:
        if args[0][0].shape[-1] == 42:
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")
        return forward(self, *args)

    monkeypatch.setattr(ATSS, "forward", small_memory)
    (images / "3.png").write_bytes(b"no image")
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments(model, images, images / "missing.png", out=tmp_path / "out"))
    assert stopped.value.code == 2
    said = capsys.readouterr()
    assert "\n3 images, 300 detections (" in said.out
    for part in (
        "3 of 6 images",
        "2.png cannot be processed (CUDA out of memory.)",
        "3.png cannot be read",
        "missing.png",
    ):
        assert part in said.err
    assert detected(tmp_path / "out") == ["0.png", "1.png", "4.png"]


def test_odd_images(model: Path, tmp_path: Path) -> None:
    """Of one pixel, longer than a JPEG can be, with a name as long as names can be, twice, and of one stem."""
    images = tmp_path / "images"
    (images / "deep").mkdir(parents=True)
    for name, size in (("a.png", (1, 1)), ("b.png", (70000, 2)), (f"{'x' * 251}.png", (9, 9)), ("deep/a.png", (9, 9))):
        Image.new("RGB", size).save(images / name)
    out = tmp_path / "out"
    cli.main(arguments(model, images, images / "a.png", out=out))
    assert pictures(out) == ["00000_a.jpg", "00001_b.png", f"00002_{'x' * 200}.jpg", "00003_a.jpg", "00004_a.jpg"]
    assert Image.open(out / "00001_b.png").size == (70000, 2)
    assert len(detected(out)) >= 3


def test_full_disk(model: Path, images: Path, tmp_path: Path) -> None:
    """Where a file cannot be written one sentence names it, and the list of detections is whole."""
    out, most = tmp_path / "out", 30_000
    script = f"import sys\nfrom ranksort.cli import main\nmain({arguments(model, images, out=out)!r})"
    done = subprocess.run(
        [sys.executable, "-c", script],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, most)),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    kept = detected(out)
    assert 0 < len(kept) < 5
    said = done.stderr.splitlines()[-1]
    assert said.startswith(f"ranksort: {out}/results_bbox.json cannot be written (File too large)")
    assert f"the first {len(kept)} of 5 images" in said
    assert "Traceback" not in done.stderr
    assert len(pictures(out)) == len(kept)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_names_which_the_console_cannot_show(model: Path, tmp_path: Path, encoding: str) -> None:
    Image.new("RGB", (30, 30)).save(tmp_path / "犬.png")
    (tmp_path / "ж.png").write_bytes(b"no image")
    done = run_forked(arguments(model, tmp_path, out=tmp_path / "ö"), {"PYTHONIOENCODING": encoding})
    assert done.returncode == 2
    assert "?.png cannot be read" in done.stderr
    assert detected(tmp_path / "ö") == ["犬.png"]


def test_tiles_are_for_any_number_of_pixels(
    model: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(SystemExit, match="2"):
        cli.main(arguments(model, images / "0.png", out=tmp_path / "whole"))
    assert "--tile` reads images of any size" in capsys.readouterr().err
    cli.main([*arguments(model, images / "0.png", out=tmp_path / "tiles"), "--tile", "32"])
    assert detected(tmp_path / "tiles") == ["0.png"]


def test_earlier_results_are_not_mixed_with_new_ones(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where they lie beside the images, which may be the folder of the results."""
    cli.main(arguments(model, images, out=images))
    before = {file: file.read_bytes() for file in images.iterdir()}
    assert len(detected(images)) == 5
    with pytest.raises(SystemExit, match="2"):
        cli.main(arguments(model, images / "0.png", out=images))
    assert "already holds results of an earlier prediction: name another folder with --out" in capsys.readouterr().err
    assert {file: file.read_bytes() for file in images.iterdir()} == before


def test_scores_are_calibrated_where_that_can_be_done(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    curve = Curve(np.array([0.0, 1.0]), np.array([0.0, 0.5]))
    categories = [Category(1, "Bär"), Category(2, "犬")]
    file = tmp_path / "c.json"
    save_calibrator(Calibrator("iou", "linear", categories, np.array([30, 0]), [curve, None], curve), file)
    raw, calibrated, refused = (tmp_path / name for name in ("raw", "calibrated", "refused"))
    cli.main(arguments(model, images, out=raw))
    cli.main([*arguments(model, images, out=calibrated), "--scores", "calibrated", "--calibration", str(file)])
    assert f"scores are the expected IoU, from {file} (1 of 2 classes" in capsys.readouterr().out
    before, after = (json.loads((out / "results_bbox.json").read_text()) for out in (raw, calibrated))
    assert [{**row, "score": row["score"] / 2, "calibrated": "iou"} for row in before] == after
    for options, message in (
        (["--scores", "calibrated"], f"{model} has no calibration, and there is no"),
        (["--scores", "precision", "--calibration", str(file)], "gives the expected IoU, not the probability"),
        (["--calibration", str(file)], "add --scores calibrated or --scores precision"),
        (["--score-threshold", "recall:.9"], "which this score threshold needs: create it with `ranksort test"),
        (["--score-threshold", "high"], 'must be a number within 0..1, "lrp", "precision:P" or "recall:R"'),
    ):
        with pytest.raises(SystemExit, match="2"):
            cli.main(["predict", str(model), str(images), "--out", str(refused), *options])
        assert message in capsys.readouterr().err
    assert not refused.exists()


def test_images_that_the_annotations_do_not_have_are_passed_over(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = {"width": 40, "height": 30}
    listed = [{"id": 10 + n, "file_name": f"{n}.png", **sizes} for n in (3, 1)]
    categories = [{"id": 1, "name": "Bär"}, {"id": 2, "name": "犬"}]
    (tmp_path / "val.json").write_text(json.dumps({"images": listed, "annotations": [], "categories": categories}))
    cli.main([*arguments(model, images, out=tmp_path / "out"), "--annotations", str(tmp_path / "val.json")])
    assert "skipped: 3 images not listed in" in capsys.readouterr().out
    written = json.loads((tmp_path / "out" / "images.json").read_text())["images"]
    assert [(image["id"], Path(image["file_name"]).name) for image in written] == [(11, "1.png"), (13, "3.png")]
    only = arguments(model, images / "0.png", out=tmp_path / "none")
    with pytest.raises(SystemExit, match="2"):
        cli.main([*only, "--annotations", str(tmp_path / "val.json")])
    assert "there is nothing to detect in: 1 image not listed in" in capsys.readouterr().err
