"""Weights to and from mmdetection 3.

`golden/mmdetection_names.json` has names and shapes of the models which mmdetection 3.3.0 builds from its own configurations with the
settings of docs/elsewhere.md, but for the inner layers of the ResNets.
"""

import functools
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ranksort import cli
from ranksort.checkpoints import load_model, read_checkpoint, save_model
from ranksort.data.coco_columns import Category
from ranksort.mmdetection import from_mmdetection, to_mmdetection
from ranksort.published import convert_checkpoint
from ranksort.recipes import create_model, get_recipe
from ranksort.recipes.build import with_pixel_statistics

NAMES = json.loads((Path(__file__).parent / "golden/mmdetection_names.json").read_text())
CENTRENESS = "bbox_head.atss_centerness."
SMALL = """
from ranksort.recipes.coco import ranksort_atss_r50_fpn_1x_coco

def small():
    recipe = ranksort_atss_r50_fpn_1x_coco()
    recipe.model.backbone, recipe.model.channels, recipe.model.head_convs = "resnet18", 64, 1
    return recipe
"""


@functools.cache
def _shapes(recipe: str) -> dict[str, Tensor]:
    with torch.device("meta"):
        return create_model(recipe).state_dict()


def _state_dict(recipe: str) -> dict[str, Tensor]:
    """A number for each tensor, of its shape but without memory."""
    return {name: torch.tensor(float(i)).expand(t.shape) for i, (name, t) in enumerate(_shapes(recipe).items())}


@pytest.mark.parametrize("recipe", NAMES)
def test_mmdetection_takes_every_tensor(recipe: str) -> None:
    converted = to_mmdetection(_state_dict(recipe), get_recipe(recipe).model.detector)
    shapes = {name: list(t.shape) for name, t in converted.items() if not name.startswith("backbone.layer")}
    assert shapes == NAMES[recipe]
    assert converted["backbone.layer1.0.conv1.weight"].shape[0] == 64


@pytest.mark.parametrize(
    "recipe", [*NAMES, "ranksort_mask_rcnn+_r101_dcn_fpn_mstrain_3x_coco", "ranksort_solov2_r101_fpn_3x"]
)
def test_there_and_back(recipe: str) -> None:
    ours = _state_dict(recipe)
    theirs = to_mmdetection(ours, get_recipe(recipe).model.detector)
    assert not theirs.keys() & ours.keys()
    back = from_mmdetection(theirs)
    assert back.keys() == ours.keys()
    assert all(back[name] is ours[name] for name in ours)


def test_the_state_of_a_loss_stays_here() -> None:
    recipe = get_recipe("ranksort_atss_r50_fpn_1x_coco")
    recipe.model.backbone, recipe.model.channels, recipe.model.num_classes = "resnet18", 64, 2
    recipe.model.loss = "average_lrp"
    ours = create_model(recipe).state_dict()
    assert "criterion.loss.localization_weight" in ours
    theirs = to_mmdetection(ours, "atss")
    assert not [name for name in theirs if not name.startswith(("backbone.", "neck.", "bbox_head."))]
    back = convert_checkpoint(theirs, recipe)
    assert back.keys() == ours.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in ours.items())


def test_the_branch_for_centreness_is_always_1() -> None:
    theirs = to_mmdetection(_state_dict("ranksort_paa_r50_fpn_1x_coco"), "paa")
    assert not theirs[CENTRENESS + "weight"].any()
    assert (theirs[CENTRENESS + "bias"].sigmoid() == 1).all()
    for part, value in (("weight", 0.1), ("bias", 0.0)):
        trained = theirs | {CENTRENESS + part: torch.full_like(theirs[CENTRENESS + part], value)}
        with pytest.raises(ValueError, match="trained centreness or IoU branch"):
            from_mmdetection(trained)


def test_yolacts_segmentation_only_matters_in_training() -> None:
    recipe = "ranksort_yolact_r50_55e_coco"
    ours = _state_dict(recipe)
    theirs = to_mmdetection(ours, "yolact") | {"mask_head.segm_branch.segm_conv.weight": torch.zeros(80, 256, 1, 1)}
    assert from_mmdetection(theirs).keys() == ours.keys()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model of two classes, and the file of its recipe beside it."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "mine.py").write_text(SMALL)
    recipe = get_recipe(f"{folder}/mine.py:small")
    recipe.model = with_pixel_statistics(recipe.model)
    torch.manual_seed(0)
    classes = [Category(1, "dog"), Category(2, "Kätzchen")]
    save_model(folder / "ours.safetensors", create_model(recipe, num_classes=2), recipe, classes)
    return folder


def test_convert_to_mmdetection_and_back(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, theirs, back = trained / "ours.safetensors", tmp_path / "new/theirs.pth", tmp_path / "back.safetensors"
    cli.main(["convert", str(source), "--out", str(theirs)])
    assert "docs/elsewhere.md" in capsys.readouterr().out
    content = torch.load(theirs, weights_only=True)
    assert content["meta"]["dataset_meta"]["classes"] == ("dog", "Kätzchen")
    assert content["state_dict"]["bbox_head.atss_cls.weight"].shape == (6, 64, 3, 3)
    cli.main(["convert", str(theirs), f"{trained}/mine.py:small", "--out", str(back)])
    before, after = read_checkpoint(source), read_checkpoint(back)
    assert [c.name for c in after.categories] == ["dog", "Kätzchen"]
    assert all(torch.equal(before.state_dict[name], tensor) for name, tensor in after.state_dict.items())
    assert load_model(back).class_names == ("dog", "Kätzchen")


def test_convert_of_our_own_to_safetensors(trained: Path, tmp_path: Path) -> None:
    cli.main(["convert", str(trained / "ours.safetensors"), "--out", str(tmp_path / "again.safetensors")])
    again, before = read_checkpoint(tmp_path / "again.safetensors"), read_checkpoint(trained / "ours.safetensors")
    assert again.recipe == before.recipe
    assert again.categories == before.categories


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["ours.safetensors", "mine.py:small", "--out", "x.pth"], "ours.safetensors contains its recipe"),
        (["theirs.pth", "--out", "x.safetensors"], "name the recipe of theirs.pth"),
        (["theirs.pth", "mine.py:small", "--out", "x.pth"], "only ranksort models can be converted for mmdetection"),
        (["ours.safetensors", "--out", "x.onnx"], "--out must name a .safetensors file, or a .pth file"),
        (["ours.safetensors", "--annotations", "three.json", "--out", "x.pth"], "has 2 classes, not 3: name them with"),
    ],
)
def test_convert_says_what_is_wrong(
    trained: Path, arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(trained)
    image = {"id": 1, "file_name": "a.jpg", "width": 64, "height": 64}
    three = {"images": [image], "annotations": [], "categories": [{"id": n, "name": str(n)} for n in range(3)]}
    Path("three.json").write_text(json.dumps(three))
    with pytest.raises(SystemExit) as stopped:
        cli.main(["convert", *arguments])
    assert stopped.value.code == 2
    assert not list(trained.glob("x.*"))
    assert said in capsys.readouterr().err


def test_backbones_and_detectors_that_mmdetection_lacks() -> None:
    ours = _state_dict("ranksort_atss_r50_fpn_1x_coco")
    with pytest.raises(ValueError, match=r"no detector mine\.py:Mine: only atss, "):
        to_mmdetection(ours, "mine.py:Mine")
    del ours["backbone.body.conv1.weight"]
    with pytest.raises(ValueError, match=r"only models with a ResNet or ResNeXt .* this atss has another backbone"):
        to_mmdetection(ours, "atss")


def test_classes_without_names_are_asked_for(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state_dict = read_checkpoint(trained / "ours.safetensors").state_dict
    torch.save({"state_dict": to_mmdetection(state_dict, "atss")}, tmp_path / "unnamed.pth")
    with pytest.raises(SystemExit):
        cli.main(
            ["convert", f"{tmp_path}/unnamed.pth", f"{trained}/mine.py:small", "--out", f"{tmp_path}/x.safetensors"]
        )
    assert "has 2 classes, not 0: name them with --annotations" in capsys.readouterr().err
