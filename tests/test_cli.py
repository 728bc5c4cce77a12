import contextlib
import csv
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask
import pytest
import torch
from forked import run_forked
from PIL import Image

import ranksort
from ranksort import cli
from ranksort.checkpoints import load_model, save_model
from ranksort.commands import train as train_commands
from ranksort.data.coco_columns import Category
from ranksort.evaluation.thresholds import lowered
from ranksort.recipes import Recipe, create_model, get_recipe, list_recipes

SMALL = """
from ranksort.recipes import Recipe
from ranksort.recipes.coco import ranksort_atss_lite0_small

def small() -> Recipe:
    recipe = ranksort_atss_lite0_small()
    recipe.name = "small"
    recipe.model.backbone, recipe.model.pretrained_backbone = "timm/lcnet_035", False
    recipe.model.channels, recipe.model.head_convs, recipe.model.min_size = 64, 1, 96
    recipe.training.batch_size, recipe.training.epochs, recipe.data.workers = 4, 1, 0
    return recipe
"""


@pytest.fixture(scope="module")
def run(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder that the command line made with a recipe of one's own."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "my_recipes.py").write_text(SMALL)
    cli.main(
        ["train", f"{folder}/my_recipes.py:small", "--data.root", str(tiny_data), "--training.output", f"{folder}/runs"]
    )
    runs = list((folder / "runs" / "small").iterdir())
    assert len(runs) == 1
    return runs[0]


def fails(*arguments: object) -> str:
    """The sentence on stderr with which a command ends, by exit code 2."""
    with contextlib.redirect_stderr(io.StringIO()) as stderr, pytest.raises(SystemExit) as stopped:
        cli.main([str(a) for a in arguments])
    assert stopped.value.code == 2
    message = stderr.getvalue().strip().splitlines()[-1]
    assert message.startswith("ranksort: ")
    return message


@pytest.mark.parametrize(
    ("given", "milestones"),
    [
        ("", (9, 11)),
        ("--training.epochs 24", (18, 22)),
        ("--training.epochs=3", (2,)),
        ("--training.epochs 1", ()),
        ("--training.epochs 24 --optimizer.milestones 10 20", (10, 20)),
    ],
)
def test_milestones_move_along_with_the_epochs(
    monkeypatch: pytest.MonkeyPatch, given: str, milestones: tuple[int, ...]
) -> None:
    recipes: list[Recipe] = []
    monkeypatch.setattr(train_commands, "_train", lambda recipe, *_: recipes.append(recipe))
    cli.main(["train", "ranksort_atss_lite0_small", *given.split()])
    assert recipes[0].optimizer.milestones == milestones


def test_module_and_version() -> None:
    done = subprocess.run([sys.executable, "-m", "ranksort", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"ranksort {ranksort.__version__}\n"


def test_help_needs_no_toolbox_to_load() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from ranksort.cli import main; main(['--help'])"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for command in ("train", "test", "predict", "evaluate", "report", "check-data", "convert", "quickstart", "recipes"):
        assert command in done.stdout


def test_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["recipes"])
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines()] == list_recipes()
    assert "box AP 39.9" in out


def test_train_test_resume(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = Recipe.from_dict(json.loads((run / "recipe.json").read_text()))
    assert (recipe.name, recipe.model.min_size, recipe.model.num_classes) == ("small", 96, 8)
    cli.main(["test", str(run), "--out", str(tmp_path / "report")])
    assert "oLRP" in capsys.readouterr().out
    assert (tmp_path / "report" / "per_class.csv").is_file()
    cli.main(["report", str(run), str(tmp_path / "report"), "--out", str(tmp_path / "both.html")])
    same = f"{tmp_path.name}/report against small/{run.name}: AP the same (± 0.0), oLRP the same (± 0.0)"
    assert capsys.readouterr().out.splitlines() == [same, f"report: {tmp_path / 'both.html'}"]
    assert run.name in (tmp_path / "both.html").read_text()
    cli.main(["train", str(run), "--resume", "--training.epochs", "2"])
    said = capsys.readouterr().out
    assert "epoch 2 of 2" in said
    best = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["epoch"] + 1
    assert re.search(rf"\nbest: AP \d+\.\d after epoch {best}, evaluated again\nCOCO bbox", said)
    assert len(list(run.parent.iterdir())) == 1


def test_results_of_test_are_evaluated_as_they_are(
    run: Path, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tested, again, truth = tmp_path / "tested", tmp_path / "again", tiny_data / "annotations" / "instances_val.json"
    cli.main(["test", str(run), "--out", str(tested), "--model.score-threshold", "0"])
    table = capsys.readouterr().out.partition("COCO bbox")[2].partition("\n\ncalibration errors of the scores")[0]
    cli.main(["evaluate", str(truth), str(tested / "results_bbox.json"), "--out", str(again)])
    assert table
    summary, _, score_errors = (
        capsys.readouterr().out.partition("COCO bbox")[2].partition("\n\nreport:")[0].rpartition("\n")
    )
    assert summary == table
    assert "scores: LaECE" in score_errors  # a sentence here, a table after `test`
    numbers = [json.loads((folder / "report.json").read_bytes()) for folder in (tested, again)]
    for key in ("summary", "per_class", "lrp"):
        assert numbers[0][key] == numbers[1][key]
    assert (tested / "thresholds.json").read_bytes() == (again / "thresholds.json").read_bytes()
    images = json.loads((tested / "images.json").read_bytes())["images"]
    found = json.loads((tested / "results_bbox.json").read_bytes())
    assert len(images) == 4
    assert sum(image["detections"] for image in images) == len(found) > 0
    assert len((tested / "results.csv").read_text().splitlines()) == 1 + len(found)
    assert "replace it with --overwrite" in fails("test", run, "--out", tested)


def test_resume_of_a_folder_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    for source, said in (
        ("runs/tiny/yesterday", "there is no run folder runs/tiny/yesterday"),
        ("tinny", "there is no recipe 'tinny'"),
        ("no/recipes.py:tiny", "no/recipes.py"),
    ):
        with pytest.raises(SystemExit) as stopped:
            cli.main(["train", source, "--resume"])
        assert stopped.value.code == 2
        assert said in capsys.readouterr().err


def test_resume_finds_the_latest_run(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = f"{run.parent.parent.parent}/my_recipes.py:small"
    cli.main(["train", recipe, "--resume", "--training.output", str(run.parent.parent), "--training.epochs", "1"])
    assert f"1 epoch has been trained: {run}" in capsys.readouterr().out
    assert "to start one" in fails("train", recipe, "--resume", "--training.output", str(tmp_path))
    with pytest.raises(SystemExit):
        cli.main(["train", recipe, "--resume", "--training.output"])


MULTI_SCALE = SMALL.replace("    return recipe\n", "    recipe.data.train_min_sizes = (64, 96)\n    return recipe\n")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("", (96, (64, 96))),
        ("--model.max-size 200", (96, (64, 96))),
        ("--model.min-size 72", (72, ())),
        ("--model.min-size=96", (96, ())),
        ("--model.min_size 96", (96, ())),
        ("--model.min-size 72 --data.train-min-sizes 64 96", (72, (64, 96))),
        ("--data.train_min_sizes 48 72 --model.min-size 72", (72, (48, 72))),
        ("--data.train-min-sizes 48", (96, (48,))),
    ],
)
def test_min_size_alone_is_that_of_training_too(
    options: str, expected: tuple[int, tuple[int, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_recipes.py").write_text(MULTI_SCALE)
    recipes: list[Recipe] = []
    monkeypatch.setattr(train_commands, "_train", lambda recipe, *_: recipes.append(recipe))
    cli.main(["train", f"{tmp_path}/my_recipes.py:small", *options.split()])
    assert (recipes[0].model.min_size, recipes[0].data.train_min_sizes) == expected


def test_resumed_run_keeps_the_sizes_it_trains_at(
    tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With some of its options again as with none."""
    monkeypatch.chdir(tmp_path)
    Path("my_recipes.py").write_text(MULTI_SCALE)
    train = ["train", "my_recipes.py:small", "--data.root", str(tiny_data)]
    for options, printed in (
        (["--model.min-size", "96", "--data.train-min-sizes", "64", "96"], "64 or 96 px in training, 96 px in"),
        (["--model.min-size", "72"], "72 px, long side"),
    ):
        cli.main([*train, *options])
        cli.main([*train, "--resume", *options[:2], "--training.epochs", "2"])
        assert capsys.readouterr().out.count(f"\nimages: short side {printed}") == 2
    assert "a different --model.min-size (72 before, 80 now)" in fails(*train, "--resume", "--model.min-size", "80")


def test_predict(run: Path, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = tmp_path / "images"
    images.mkdir()
    Image.new("RGB", (90, 130), "gray").save(images / "one.png")
    (images / "note.txt").write_text("no image")
    first = sorted((tiny_data / "images").iterdir())[0]
    out = tmp_path / "out"
    cli.main(["predict", str(run), str(images), str(first), "--out", str(out), "--score-threshold", "0.0"])
    results = {"results_bbox.json", "results.csv", "images.json"}
    assert {p.name for p in out.iterdir()} == {"00000_one.jpg", f"00001_{first.stem}.jpg", *results}
    detections = json.loads((out / "results_bbox.json").read_text())
    listed = json.loads((out / "images.json").read_text())["images"]
    assert [image["file_name"] for image in listed] == [str(images / "one.png"), str(first)]
    for d in detections:
        x, y, w, h = d["bbox"]
        assert min(x, y, w, h) >= 0
        assert 0 <= d["score"] <= 1

    (images / "broken.jpg").write_bytes(b"\xff\xd8 no more")
    out = tmp_path / "other"
    message = fails("predict", run, images, "--out", out)
    assert "1 of 2 images could not be read" in message
    assert "broken.jpg" in message
    out = tmp_path / "none"
    assert "the device 'nonsense' cannot be used" in fails("predict", run, first, "--out", out, "--device", "nonsense")
    for number in ("7", "nan"):
        assert "within 0..1" in fails("predict", run, first, "--out", out, "--score-threshold", number)


def test_where_nothing_can_be_written_is_said_before_the_work(tmp_path: Path) -> None:
    (file := tmp_path / "file").touch()
    for command in ("evaluate a.json b.json", "predict run photo.jpg", "import-data folder", "quickstart"):
        assert f"--out {file} is a file: name a folder" in fails(*command.split(), "--out", file)
        assert f"--out {file}/new cannot be written: {file} is a file" in fails(*command.split(), "--out", file / "new")
    for command in ("report run", "calibrate a.json b.json", "apply-calibration a.json b.json", "merge a.json b.json"):
        assert f"--out {tmp_path} is a folder: name a file" in fails(*command.split(), "--out", tmp_path)
    recipe, folder = "ranksort_atss_r50_fpn_1x_coco", tmp_path / "m.safetensors"
    folder.mkdir()
    assert f"--out {folder} is a folder" in fails("convert", "a.pth", recipe, "--out", folder)


def test_predict_with_the_thresholds_of_the_report(
    tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = get_recipe("ranksort_atss_r50_fpn_1x_coco")
    recipe.model.backbone, recipe.model.channels, recipe.model.min_size = "timm/lcnet_035", 64, 64
    recipe.model.head_convs, recipe.model.score_threshold = 1, 0.0
    torch.manual_seed(0)
    categories = [Category(id, name) for id, name in ((3, "cat"), (5, "dog"), (9, "cow"), (10, "elk"))]
    model = tmp_path / "m.safetensors"
    save_model(model, create_model(recipe, num_classes=4), recipe, categories)
    images = sorted((tiny_data / "images").iterdir())[:3]

    def arguments(threshold: object) -> list[str]:
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        chosen = [] if threshold is None else ["--score-threshold", str(threshold)]
        return ["predict", str(model), *map(str, images), "--out", str(tmp_path / "out"), *chosen]

    def predict(threshold: object) -> list[tuple[str, str, float]]:
        cli.main(arguments(threshold))
        found = csv.DictReader((tmp_path / "out" / "results.csv").open())
        return [(d["file_name"], d["class"], float(d["score"])) for d in found]

    everything = predict(0)
    scores = {name: sorted(s for _, n, s in everything if n == name) for name in ("cat", "dog", "cow", "elk")}
    cat, dog = scores["cat"][len(scores["cat"]) // 2], scores["dog"][-1]
    rows = [(3, "cat", cat), (5, "dog", dog), (9, "cow", None), (77, "elk", 1.0)]  # the last one is none of the model's
    report = tmp_path / "report" / "thresholds.json"
    report.parent.mkdir()
    thresholds = [{"category_id": c, "class": name, "threshold": t} for c, name, t in rows]
    report.write_text(json.dumps({"default": (cat + dog) / 2, "thresholds": thresholds}))
    least = {"cat": cat, "dog": dog, "cow": (cat + dog) / 2, "elk": (cat + dog) / 2}
    expected = [row for row in everything if row[2] >= lowered(least[row[1]])]
    assert predict("lrp") == predict(None) == expected
    loaded = load_model(model).predict(images)
    assert [name for found in loaded for name in found.names] == [name for _, name, _ in expected]
    assert {name for _, name, _ in expected} == set(least)
    assert len(expected) < len(everything)

    report.write_text('{"default": 0.5, "thresholds": [{"category_id": 77, "class": "elk", "threshold": 0.5}]}')
    assert "no threshold for any class" in fails(*arguments("lrp"))
    report.write_text("{}")
    assert "damaged" in fails(*arguments("lrp"))
    predict(None)
    said = capsys.readouterr().out
    assert "thresholds.json is damaged" in said
    assert "detections with a score of 0.3 or more" in said
    report.unlink()
    assert "there is no" in fails(*arguments("lrp"))


def test_predict_with_the_ids_of_annotations(run: Path, tiny_data: Path, tmp_path: Path) -> None:
    """What is written so is what `evaluate` reads."""
    truth = tiny_data / "annotations" / "instances_val.json"
    images = {image["id"]: image["file_name"] for image in json.loads(truth.read_text())["images"]}
    files = [str(tiny_data / "images" / name) for name in images.values()]
    arguments = ["--out", str(tmp_path), "--annotations", str(truth), "--score-threshold", "0", "--no-pictures"]
    cli.main(["predict", str(run), *reversed(files), *arguments])
    listed = json.loads((tmp_path / "images.json").read_text())["images"]
    assert [image["id"] for image in listed] == [*reversed(images)]
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".csv"}
    cli.main(["evaluate", str(truth), str(tmp_path / "results_bbox.json")])


def test_predict_finds_what_scores_below_the_threshold_of_the_recipe(tmp_path: Path) -> None:
    recipe = get_recipe("ranksort_atss_r50_fpn_1x_coco")
    recipe.model.backbone, recipe.model.channels, recipe.model.min_size = "timm/lcnet_035", 64, 64
    torch.manual_seed(0)
    save_model(tmp_path / "m.safetensors", create_model(recipe, num_classes=1), recipe, [Category(1, "cat")])
    Image.new("RGB", (90, 130), "gray").save(tmp_path / "one.png")
    arguments = ["predict", str(tmp_path / "m.safetensors"), str(tmp_path / "one.png"), "--out", str(tmp_path)]
    cli.main([*arguments, "--score-threshold", "0.001"])
    scores = [d["score"] for d in json.loads((tmp_path / "results_bbox.json").read_text())]
    assert 0 < len([s for s in scores if 0.001 <= s < recipe.model.score_threshold]) == len(scores)


def test_predict_masks(tmp_path: Path) -> None:
    recipe = get_recipe("ranksort_mask_rcnn_r50_fpn_1x_coco")
    recipe.model.backbone, recipe.model.channels, recipe.model.min_size = "timm/lcnet_035", 64, 64
    recipe.model.score_threshold = 0.005
    torch.manual_seed(0)
    categories = [Category(1, "cat"), Category(2, "dog")]
    save_model(tmp_path / "m.safetensors", create_model(recipe, num_classes=2), recipe, categories)
    Image.new("RGB", (90, 130), "gray").save(tmp_path / "one.png")
    out = tmp_path / "out"
    arguments = [tmp_path / "m.safetensors", tmp_path / "one.png", "--out", out, "--score-threshold", "0.0"]
    cli.main(["predict", *map(str, arguments)])
    detections = json.loads((out / "results_segm.json").read_text())
    assert 0 < len(detections) <= 100
    encoded = [d["segmentation"] for d in detections]
    assert all(rle["size"] == [130, 90] for rle in encoded)
    boxes = json.loads((out / "results_bbox.json").read_text())
    x, y, width, height = (torch.tensor([d["bbox"] for d in boxes]) + torch.tensor([-1, -1, 2, 2])).T
    inner_x, inner_y, inner_width, inner_height = torch.from_numpy(pycocotools.mask.toBbox(encoded)).T
    inside = (inner_x >= x) & (inner_y >= y) & (inner_x + inner_width <= x + width)
    inside &= inner_y + inner_height <= y + height
    seen = inner_width > 0
    assert bool(seen.any())
    assert bool(inside[seen].all())


def test_evaluate(tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = tiny_data / "annotations" / "instances_val.json"
    perfect: list[dict[str, Any]] = [
        {key: a[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.9}
        for a in json.loads(truth.read_text())["annotations"]
        if not a["iscrowd"]
    ]
    (tmp_path / "d.json").write_text(json.dumps(perfect))
    cli.main(["evaluate", str(truth), str(tmp_path / "d.json"), "--out", str(tmp_path / "report")])
    assert "AP 100.0" in capsys.readouterr().out
    assert (tmp_path / "report" / "report.json").is_file()
    perfect[0]["image_id"] = 123456
    (tmp_path / "d.json").write_text(json.dumps(perfect))
    assert "123456" in fails("evaluate", truth, tmp_path / "d.json")


def test_evaluate_draws_the_images_and_keeps_an_earlier_report(
    tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth, out = tiny_data / "annotations" / "instances_val.json", tmp_path / "report"
    (tmp_path / "d.json").write_text("[]")
    command = ["evaluate", str(truth), str(tmp_path / "d.json"), "--images", str(tiny_data / "images")]
    assert "with --out" in fails(*command)
    assert "does not exist" in fails(*command[:-1], tmp_path / "no", "--out", out)
    assert "AP" not in capsys.readouterr().out  # said before the evaluation
    cli.main([*command, "--out", str(out)])
    assert "points of AP50: missed 100.0." in capsys.readouterr().out
    assert "data:image/jpeg" in (out / "index.html").read_text()
    before = (out / "report.json").read_bytes()
    assert "replace it with --overwrite" in fails(*command, "--out", out, "--max-detections", "1")
    assert (out / "report.json").read_bytes() == before
    cli.main([*command, "--out", str(out), "--max-detections", "1", "--overwrite"])
    assert (out / "report.json").read_bytes() != before


def test_check_data(tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = json.loads((tiny_data / "annotations" / "instances_val.json").read_text())
    content["annotations"][0]["category_id"] = 77
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(SystemExit) as stopped:
        cli.main(["check-data", str(tiny_data / "images"), str(tmp_path / "a.json")])
    assert stopped.value.code == 1
    assert "77" in capsys.readouterr().out
    cli.main(["check-data", str(tiny_data / "images"), str(tiny_data / "annotations" / "instances_val.json")])


def test_check_data_reads_validation_images_with_the_white_of_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a run does. Alone, those of 10 bits would be bright and those of 12 bits at most a quarter of it."""
    (tmp_path / "images").mkdir()
    (tmp_path / "annotations").mkdir()
    for number, (split, greatest) in enumerate({"train": 4095, "val": 500}.items()):
        ramp = np.tile(np.linspace(0, greatest, 64), (64, 1)).astype(np.uint16)
        Image.fromarray(ramp).save(tmp_path / f"images/{split}.png")
        content = {
            "images": [{"id": number, "file_name": f"{split}.png", "width": 64, "height": 64}],
            "categories": [{"id": 1, "name": "cell"}],
            "annotations": [{"id": 1, "image_id": number, "category_id": 1, "bbox": [8, 8, 9, 9], "area": 81}],
        }
        (tmp_path / f"annotations/instances_{split}.json").write_text(json.dumps(content))
    cli.main(["check-data", str(tmp_path)])
    assert "values up to only 500, but white is 4095" in capsys.readouterr().out
    cli.main(["check-data", str(tmp_path), "--white", "600"])
    assert "values up to 4095, but white is 600" in capsys.readouterr().out
    assert "--white must be 0 or more" in fails("check-data", tmp_path, "--white", "-1")


def test_convert(tmp_path: Path) -> None:
    message = fails(
        "convert", tmp_path / "no.pth", "ranksort_atss_r50_fpn_1x_coco", "--out", tmp_path / "x.safetensors"
    )
    assert "no.pth" in message
    torch.save({"state_dict": {"backbone.conv1.weight": torch.zeros(1)}}, tmp_path / "wrong.pth")
    message = fails(
        "convert", tmp_path / "wrong.pth", "ranksort_atss_r50_fpn_1x_coco", "--out", tmp_path / "x.safetensors"
    )
    assert "do not fit" in message
    published = {}
    model = create_model("ranksort_atss_r50_fpn_1x_coco")
    for name, tensor in model.state_dict().items():
        published[_published_name(name)] = tensor
    torch.save({"meta": {"epoch": 12}, "state_dict": published}, tmp_path / "right.pth")
    cli.main(
        [
            "convert",
            str(tmp_path / "right.pth"),
            "ranksort_atss_r50_fpn_1x_coco",
            "--out",
            str(tmp_path / "new" / "x.safetensors"),
        ]
    )
    loaded = load_model(tmp_path / "new" / "x.safetensors")
    assert loaded.class_names[:2] == ("person", "bicycle")
    assert all(
        torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), model.state_dict().values(), strict=True)
    )


def _published_name(name: str) -> str:
    parts = name.split(".")
    if name.startswith("backbone.body."):
        return "backbone." + ".".join(parts[2:])
    if parts[0] == "fpn":
        base = {"laterals": "lateral_convs", "outputs": "fpn_convs", "extras": "fpn_convs"}[parts[1]]
        number = int(parts[2]) + 3 * (parts[1] == "extras")
        return f"neck.{base}.{number}.conv.{parts[3]}"
    tower = {"class_tower": "cls_convs", "box_tower": "reg_convs"}.get(parts[1])
    if tower:
        return f"bbox_head.{tower}.{parts[2]}.{'gn' if parts[3] == 'norm' else 'conv'}.{parts[4]}"
    if parts[1] == "scales":
        return f"bbox_head.scales.{parts[2]}.scale"
    return f"bbox_head.{ {'class_logits': 'atss_cls', 'box_deltas': 'atss_reg'}[parts[1]] }.{parts[2]}"


@pytest.mark.parametrize("workers", ["0", "1"])
def test_broken_image_in_training(run: Path, tiny_data: Path, tmp_path: Path, workers: str) -> None:
    shutil.copytree(tiny_data, tmp_path / "data")
    for path in (tmp_path / "data" / "images").iterdir():
        path.write_bytes(path.read_bytes()[:500])
    message = fails("train", run, "--data.root", tmp_path / "data", "--data.workers", workers)
    assert "data/images/" in message


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "nothing"], "`ranksort recipes` lists them"),
        (["train", "ranksort_atss_lite0_small"], "--data.root"),
        (["train", "ranksort_atss_lite0_small", "--data.root", "/nowhere"], "/nowhere"),
        (["train", "missing.py:recipe"], "missing.py"),
        (["test", "nothing.ckpt"], "nothing.ckpt"),
        (["predict", "nothing.ckpt", "a.jpg", "--out", "x"], "nothing.ckpt"),
        (["evaluate", "no.json", "no.json"], "The ground truth no.json does not exist"),
        (["evaluate", "no.json", "no.json", "--max-detections", "0"], "1 or more; got 0"),
        (["check-data", "no", "no.json"], "no"),
        (["train", "ranksort_atss_lite0_small", "--data.root", "/nowhere", "--model.prior", "0"], "--model.prior"),
        (["quickstart", "--recipe", "ranksort_mask_rcnn_r50_fpn_1x_coco"], "ranksort_mask_rcnn_lite0_small"),
    ],
)
def test_mistakes_get_one_sentence(arguments: list[str], said: str) -> None:
    assert said in fails(*arguments)


def test_convert_says_what_is_wrong_with_the_annotations(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{")
    arguments = ["--out", "x.safetensors", "--annotations", str(tmp_path / "a.json")]
    assert "a.json cannot be used" in fails("convert", "x.pth", "ranksort_atss_r50_fpn_1x_coco", *arguments)


def test_a_damaged_recipe_of_a_run_is_named(tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text("")
    assert f"{tmp_path / 'recipe.json'} cannot be used" in fails("train", str(tmp_path))


def test_a_line_break_in_a_name_does_not_cut_the_sentence() -> None:
    assert fails("evaluate", "no\nsuch.json", "no.json") == "ranksort: The ground truth no such.json does not exist."


@pytest.mark.parametrize("recipe", ["ranksort_atss_lite0_small", "ranksort_mask_rcnn_lite0_small"])
def test_quickstart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], recipe: str
) -> None:
    from ranksort.data import synthetic

    write = synthetic.write_synthetic_dataset
    monkeypatch.setattr(
        synthetic,
        "write_synthetic_dataset",
        lambda root: write(root, train_images=8, val_images=3, image_size=(96, 80)),
    )
    cli.main(["quickstart", "--recipe", recipe, "--out", str(tmp_path), "--epochs", "1", "--workers", "0"])
    out = capsys.readouterr().out
    assert "ranksort predict" in out
    (report,) = tmp_path.glob("runs/*/*/report")
    assert (report / "index.html").is_file()
    assert f"look at           {report / 'index.html'}" in out


def test_two_processes(run: Path, tiny_data: Path, tmp_path: Path) -> None:
    """Both train, every image is evaluated once, and one of them reports."""
    recipe = f"{run.parent.parent.parent}/my_recipes.py:small"
    arguments = ["train", recipe, "--data.root", str(tiny_data), "--training.output", str(tmp_path)]
    options = ["--training.devices", "2", "--training.global-ranking"]
    done = run_forked([*arguments, *options], timeout=300, script=tmp_path / "main.py")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("report: ") == 1
    (folder,) = (path for path in (tmp_path / "small").iterdir() if (path / "report").is_dir())
    (row,) = (r for r in csv.DictReader((folder / "metrics.csv").open()) if r["val/AP"])
    assert json.loads((folder / "report" / "report.json").read_text())["summary"]["AP"] == pytest.approx(
        float(row["val/AP"])
    )


def test_names_which_the_console_cannot_show(tiny_data: Path, tmp_path: Path) -> None:
    """Of classes, in what training, evaluation and the data check print."""
    for file in ("train", "val"):
        content = json.loads((tiny_data / "annotations" / f"instances_{file}.json").read_text())
        for category in content["categories"]:
            category["name"] = f"犬{category['id']}"
        (tmp_path / f"{file}.json").write_text(json.dumps(content))
    (tmp_path / "detections.json").write_text("[]")
    (tmp_path / "my_recipes.py").write_text(SMALL)
    truth = str(tmp_path / "val.json")
    files = ["--data.train-annotations", str(tmp_path / "train.json"), "--data.val-annotations", truth]
    train = ["train", f"{tmp_path}/my_recipes.py:small", "--data.root", str(tiny_data), *files]
    for command in (
        [*train, "--training.output", str(tmp_path / "runs")],
        ["check-data", str(tiny_data / "images"), truth],
        ["evaluate", truth, str(tmp_path / "detections.json"), "--out", str(tmp_path / "report")],
        ["report", str(tmp_path / "report"), "--out", str(tmp_path / "all.html")],
    ):
        done = run_forked(command, {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"})
        assert done.returncode == 0, done.stderr
        assert "?1 " in done.stdout or command[0] == "report"
    assert "犬1" in (tmp_path / "report" / "per_class.csv").read_text(encoding="utf-8")
