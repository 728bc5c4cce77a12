"""A detector in a user's own file, from training to a loaded model; and that nobody else's file is run."""

import csv
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from ranksort import cli, engine, load_model
from ranksort.checkpoints import read_checkpoint, save_model
from ranksort.data.coco_columns import Category
from ranksort.interrupt import Terminated
from ranksort.losses.localization import paired_iou
from ranksort.models import ATSS, Detector
from ranksort.models.detector import Detector as DetectorInItsFile
from ranksort.recipes import Recipe, create_model, get_recipe
from ranksort.recipes.detectors import DETECTORS, get_detector

EXAMPLE = Path(__file__).parents[1] / "examples" / "my_detector.py"
OPTIONS = """
--model.backbone timm/lcnet_035 --model.no-pretrained-backbone --model.channels 64 --model.min-size 96 --model.max-size 160
--model.pixel-mean 124 116 104 --model.pixel-std 58 57 57 --training.batch-size 4 --training.epochs 1 --data.workers 0
--model.score-threshold 0.001 --evaluation.pictures 2
"""

EVIL = """
from pathlib import Path
from ranksort.models import ATSS
Path(__file__).with_name("it_ran").touch()
class Evil(ATSS):
    pass
"""


def fails(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The sentence on stderr with which a command ends, by exit code 2."""
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(a) for a in arguments])
    assert stopped.value.code == 2
    (sentence,) = capsys.readouterr().err.strip().splitlines()
    return sentence


@pytest.fixture(scope="module")
def name(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The example's detector, in a folder of the user's."""
    if not EXAMPLE.is_file():
        pytest.skip("the examples/ of a checkout are not here")
    return f"{shutil.copy(EXAMPLE, tmp_path_factory.mktemp('own'))}:CentreDetector"


@pytest.fixture(scope="module")
def run(name: str, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    arguments = ["train", "ranksort_atss_lite0_small", "--model.detector", name, "--data.root", str(tiny_data)]
    cli.main([*arguments, *OPTIONS.split(), "--training.output", str(runs)])
    (run,) = (runs / "ranksort_atss_lite0_small").iterdir()
    return run


def test_the_detector_learns(name: str) -> None:
    torch.manual_seed(0)
    sizes = {"backbone": "resnet18", "channels": 64, "min_size": 96, "max_size": 128, "frozen_stages": -1}
    model = create_model("ranksort_atss_r50_fpn_1x_coco", num_classes=2, detector=name, **sizes)
    image = torch.rand(3, 96, 128) * 0.2
    image[0, 10:50, 10:60] = image[1, 30:90, 70:110] = 0.9
    targets = [{"boxes": torch.tensor([[10.0, 10, 60, 50], [70, 30, 110, 90]]), "labels": torch.tensor([0, 1])}]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(30):
        loss = sum(model([image], targets).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    (found,) = model.eval()([image])
    assert sorted(found["labels"][:2].tolist()) == [0, 1]
    wanted = targets[0]["boxes"][found["labels"][:2]]
    assert bool((paired_iou(found["boxes"][:2], wanted) > 0.6).all())


def test_train(run: Path, name: str) -> None:
    assert json.loads((run / "recipe.json").read_text())["model"]["detector"] == name
    row = next(csv.DictReader((run / "metrics.csv").open()))
    assert {"train/ranking", "train/sorting", "train/box"} <= set(row)
    assert float(row["train/positives"]) >= 9
    assert 0 < float(row["train/quality"]) < 1


def test_predict(run: Path, name: str, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = sorted((tiny_data / "images").iterdir())[0]
    arguments = ["predict", str(run), str(image), "--score-threshold", "0.001"]
    for option in ("--model.detector", "--detector"):
        out = tmp_path / option
        cli.main([*arguments, option, name, f"--out={out}"])
        found = json.loads((out / "results_bbox.json").read_text())
        assert len(found) > 0
    assert f"name it with --model.detector {name}" in fails(capsys, *arguments, f"--out={tmp_path / 'none'}")


def test_evaluate(run: Path, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["test", str(run), "--model.detector", name, "--out", str(tmp_path / "report")])
    assert "oLRP" in capsys.readouterr().out
    assert (tmp_path / "report" / "report.json").is_file()
    assert f"name it with --model.detector {name}" in fails(capsys, "test", run)


def test_load_model(run: Path, name: str) -> None:
    model = load_model(run, detector=name)
    assert type(model).__name__ == "CentreDetector"
    assert not model.training
    same = load_model(run, detector=get_detector(name))
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), same.state_dict().values(), strict=True))
    with pytest.raises(
        ValueError, match=r"are not executed automatically: if you trust the file, name it .* detector='.*Centre"
    ):
        load_model(run)
    with pytest.raises(ValueError, match=r"the weights of .* do not fit this model"):
        load_model(run, detector="atss")


def test_resume(run: Path, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = tmp_path / "run"
    shutil.copytree(run, mine)
    resume = ["train", str(mine), "--resume", "--training.epochs", "2"]
    assert f"name it with --model.detector {name}" in fails(capsys, *resume)
    assert "a different --model.detector (my_detector.py:CentreDetector before, atss now)" in fails(
        capsys, *resume, "--model.detector", "atss"
    )
    moved = shutil.copy(name.rpartition(":")[0], tmp_path)
    cli.main([*resume, "--model.detector", f"{moved}:CentreDetector"])
    assert "epoch 2 of 2" in capsys.readouterr().out


def test_resume_by_a_recipe_which_names_the_detector(
    name: str, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my_recipes.py").write_text(
        "from ranksort.recipes.coco import ranksort_atss_lite0_small\n"
        "def mine():\n"
        "    recipe = ranksort_atss_lite0_small()\n"
        f"    recipe.name, recipe.model.detector = 'mine', {name!r}\n"
        "    return recipe\n"
    )
    arguments = ["train", f"{tmp_path}/my_recipes.py:mine", "--training.output", str(tmp_path)]
    cli.main([*arguments, "--data.root", str(tiny_data), *OPTIONS.split()])
    cli.main([*arguments, "--resume", "--training.epochs", "2"])
    assert "epoch 2 of 2" in capsys.readouterr().out


def test_a_stopped_run_says_how_to_go_on(
    name: str, tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_recipe.model.detector, tiny_recipe.training.epochs = name, 1
    forward = Detector.forward

    def stopped(self: Detector, *args: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return forward(self, *args)

    monkeypatch.setattr(get_detector(name), "forward", stopped)
    with pytest.raises(Terminated):
        engine.train(tiny_recipe, tmp_path / "run")
    wanted = f"to continue: ranksort train {tmp_path / 'run'} --resume --model.detector {name}\n"
    assert wanted in capsys.readouterr().out


@pytest.fixture
def evil(tmp_path: Path) -> Path:
    """A checkpoint whose detector is in a file that is there, and leaves `it_ran` where it is run."""
    (tmp_path / "evil.py").write_text(EVIL)
    recipe = get_recipe("ranksort_atss_r50_fpn_1x_coco")
    recipe.model.backbone, recipe.model.channels, recipe.model.head_convs = "timm/lcnet_035", 64, 1
    model = create_model(recipe, num_classes=1)
    recipe.model.detector = f"{tmp_path}/evil.py:Evil"
    save_model(tmp_path / "m.safetensors", model, recipe, [Category(1, "cat")])
    return tmp_path / "m.safetensors"


def test_a_checkpoint_does_not_run_the_file_that_it_names(
    evil: Path, tiny_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = evil.parent / "run"
    (run / "checkpoints").mkdir(parents=True)
    checkpoint = read_checkpoint(evil)
    (run / "recipe.json").write_text(json.dumps(checkpoint.recipe.as_dict()))
    content = {
        "state_dict": {f"model.{k}": v for k, v in checkpoint.state_dict.items()},
        "ranksort": {"recipe": checkpoint.recipe.as_dict(), "categories": [{"id": 1, "name": "cat"}]},
    }
    torch.save(content, run / "checkpoints" / "last.ckpt")
    image, root = next((tiny_data / "images").iterdir()), ("--data.root", tiny_data)
    for command in (
        ("predict", evil, image, "--out", evil.parent / "out"),
        ("predict", run, image, "--out", evil.parent / "out"),
        ("test", evil, *root),
        ("test", run, *root, "--model.score-threshold", "0.1"),
        ("train", run, *root),
        ("train", run, "--resume", *root),
    ):
        assert "files named by a checkpoint or run are not executed automatically" in fails(capsys, *command)
    for use in (
        lambda: load_model(evil),
        lambda: checkpoint.build(),
        lambda: checkpoint.recipe.check(),
        lambda: checkpoint.recipe.model.has_masks,
        lambda: create_model(Recipe.from_dict(checkpoint.recipe.as_dict())),
    ):
        with pytest.raises(ValueError, match="are not executed automatically"):
            use()
    for command in ("test", "train"):  # nor for their help
        with pytest.raises(SystemExit):
            cli.main([command, str(run), "--help"])
    assert not (evil.parent / "it_ran").exists()
    assert isinstance(load_model(evil, detector=f"{evil.parent}/evil.py:Evil"), ATSS)
    assert (evil.parent / "it_ran").exists()


@pytest.mark.parametrize("disguise", ["{}", "{} (to be named again)", " {}", "{}\n", "./{}"])
def test_no_disguise_runs_a_file(evil: Path, disguise: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(evil.parent)
    values = read_checkpoint(evil).recipe.as_dict()
    values["model"]["detector"] = disguise.format("evil.py:Evil")
    recipe = Recipe.from_dict(values)
    for again in (recipe, Recipe.from_dict(recipe.as_dict())):
        with pytest.raises(ValueError, match=r"not executed automatically|there is no detector"):
            create_model(again)
    assert not (evil.parent / "it_ran").exists()


def test_a_recipe_keeps_the_name_of_its_detector(evil: Path, tmp_path: Path) -> None:
    checkpoint = read_checkpoint(evil)
    name = f"{evil.parent}/evil.py:Evil"
    assert checkpoint.recipe.as_dict()["model"]["detector"] == name
    model = load_model(evil, detector=name)
    save_model(tmp_path / "again.safetensors", model, checkpoint.recipe, checkpoint.categories)
    assert read_checkpoint(tmp_path / "again.safetensors").recipe == checkpoint.recipe
    checkpoint.recipe.model.detector = type(model)  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"set model\.detector to file\.py:Class instead of the class"):
        checkpoint.recipe.as_dict()


def test_the_class_itself() -> None:
    class Mine(ATSS):
        channel_step = 96

    small: dict[str, Any] = {"backbone": "resnet18", "head_convs": 0, "num_classes": 2}
    model = create_model("ranksort_atss_r50_fpn_1x_coco", detector=Mine, channels=96, **small)
    assert type(model) is Mine
    with pytest.raises(ValueError, match=r"--model\.channels must be a multiple of 96 and at least 64, got 64"):
        create_model("ranksort_atss_r50_fpn_1x_coco", detector=Mine, channels=64, **small)


def test_names_that_are_no_detectors(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("from torch import nn\nclass Layer(nn.Linear): ...\nnumber = 3\ndef function(): ...\n")
    for name, sentence in (
        (
            "mask-rcnn",
            "there is no detector 'mask-rcnn': choose one of atss, paa, .*, or file.py:Class for your",
        ),
        ("", "there is no detector ''"),
        (str(file), "there is no detector"),
        (f"{file}:Layer", "must be a subclass of ranksort.models.Detector"),
        (f"{file}:function", "must be a subclass of ranksort.models.Detector"),
        (f"{file}:number", "has no class number"),
        (f"{file}:Other", r"mine\.py has no class Other"),
    ):
        with pytest.raises(ValueError, match=sentence):
            create_model("ranksort_atss_r50_fpn_1x_coco", detector=name)
    with pytest.raises(FileNotFoundError, match=r"no file .*gone\.py with the detector Mine"):
        create_model("ranksort_atss_r50_fpn_1x_coco", detector=f"{tmp_path}/gone.py:Mine")


def test_a_changed_file_is_run_again(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    text = "from ranksort.models import ATSS\nclass Mine(ATSS):\n    channel_step = {}\n"
    file.write_text(text.format(32))
    first = get_detector(f"{file}:Mine")
    assert get_detector(f"{file}:Mine") is first
    file.write_text(text.format(64) + "\n")
    assert get_detector(f"{file}:Mine").channel_step == 64


@pytest.mark.parametrize("name", DETECTORS)
def test_the_table_and_what_its_classes_say(name: str) -> None:
    detector = get_detector(name)
    assert issubclass(detector, Detector)
    assert Detector is DetectorInItsFile
    settings = Recipe().as_dict()["model"]
    assert set(detector.settings) <= set(settings)
    recipe = Recipe("x")
    recipe.model.detector = name
    assert recipe.model.has_masks == detector.has_masks
    recipe.check()


def test_what_detectors_were_known_for_by_name() -> None:
    of = {name: get_detector(name) for name in DETECTORS}
    assert {n for n, d in of.items() if d.has_masks} == {"mask_rcnn", "yolact", "solov2", "solov2_light"}
    assert {n for n, d in of.items() if not d.keeps_ratio} == {"yolact"}
    assert {n for n, d in of.items() if d.backbone_levels == 3} == {"atss", "paa", "yolact"}
    assert {n for n, d in of.items() if d.channel_step == 64} == {"solov2", "solov2_light"}
    assert {n for n, d in of.items() if "upsampling" in d.settings} == {"faster_rcnn", "cascade_rcnn", "mask_rcnn"}
    for recipe in ("atss_r50_fpn_1x_coco", "mask_rcnn_r50_fpn_1x_coco", "yolact_r50_55e_coco", "solov2_r101_fpn_3x"):
        published = get_recipe(f"ranksort_{recipe}").model
        detector = of[published.detector]
        assert detector.score_threshold == published.score_threshold
        assert detector.nms_threshold == published.nms_threshold
