"""Images are normalised as the backbone was pretrained, unless a recipe says otherwise; what is stored are the numbers themselves."""

import json
from pathlib import Path
from typing import Any

import pytest
from torchvision import tv_tensors
from torchvision.transforms import v2

from ranksort import engine
from ranksort.checkpoints import load_model, read_checkpoint, save_model
from ranksort.data.coco_columns import Category
from ranksort.recipes import Recipe, create_model, get_recipe
from ranksort.recipes.build import build_dataset

ATSS_R50 = "ranksort_atss_r50_fpn_1x_coco"
IMAGENET = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
HALF = [127.5] * 3, [127.5] * 3
OPENAI = [122.771, 116.746, 104.094], [68.501, 66.632, 70.323]


def _numbers(recipe: str | Recipe, **overrides: Any) -> tuple[list[float], list[float]]:
    transform = create_model(recipe, channels=64, **overrides).transform
    mean, std = (pytest.approx((255 * x).flatten().tolist(), rel=1e-6) for x in (transform.mean, transform.std))
    return mean, std


@pytest.mark.parametrize(
    ("backbone", "expected"),
    [
        ("resnet18", IMAGENET),
        ("timm/resnet10t", IMAGENET),
        ("timm/test_convnext", HALF),
        ("timm/legacy_xception", HALF),
        ("timm/resnet50.fb_swsl_ig1b_ft_in1k", IMAGENET),
        ("timm/resnet50_clip.openai", OPENAI),
    ],
)
def test_of_the_backbone(backbone: str, expected: tuple[list[float], list[float]]) -> None:
    assert expected == _numbers(ATSS_R50, backbone=backbone)


@pytest.mark.parametrize("recipe", ["ranksort_atss_lite0_small", "ranksort_mask_rcnn_lite0_small"])
def test_of_small_recipes(recipe: str) -> None:
    assert _numbers(recipe) == HALF
    assert _numbers(recipe, backbone="resnet18") == IMAGENET
    assert _numbers(recipe, backbone="timm/resnet10t") == IMAGENET


def test_of_the_recipe() -> None:
    mean, std = [1.0, 2.0, 3.0], [4.0, 5.0, 6.0]
    assert (mean, std) == _numbers(
        ATSS_R50, backbone="timm/test_convnext", pixel_mean=tuple(mean), pixel_std=tuple(std)
    )
    assert (mean, HALF[1]) == _numbers(ATSS_R50, backbone="timm/test_convnext", pixel_mean=tuple(mean))
    yolact = [123.68, 116.78, 103.94], [58.40, 57.12, 57.38]
    assert yolact == _numbers("ranksort_yolact_r50_55e_coco", backbone="resnet18", min_size=96)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        (
            {"pixel_mean": (1.0,)},
            r"--model\.pixel-mean must be three numbers, or none for the backbone's own, got \(1\.0,\)",
        ),
        ({"pixel_std": (1.0, 2.0)}, r"--model\.pixel-std must be three numbers"),
        ({"pixel_std": (1.0, 0.0, 2.0)}, r"--model\.pixel-std must be above 0"),
    ],
)
def test_wrong_numbers(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        create_model(ATSS_R50, **fields)


def test_saved_models_hold_the_numbers(tmp_path: Path) -> None:
    recipe = get_recipe(ATSS_R50)
    recipe.model.backbone, recipe.model.channels, recipe.model.num_classes = "timm/test_convnext", 64, 1
    save_model(tmp_path / "model.safetensors", create_model(recipe), recipe, [Category(1, "cell")])
    assert recipe.model.pixel_mean == ()
    stored = read_checkpoint(tmp_path / "model.safetensors").recipe.model
    assert (list(stored.pixel_mean), list(stored.pixel_std)) == HALF


def test_runs_hold_the_numbers_and_go_on_with_them(tiny_recipe: Recipe, tmp_path: Path) -> None:
    given = Recipe.from_dict(tiny_recipe.as_dict())
    given.model.backbone, given.training.epochs = "timm/test_convnext", 1
    again = Recipe.from_dict(given.as_dict())
    engine.train(given, tmp_path / "run")
    stored = json.loads((tmp_path / "run" / "recipe.json").read_text())["model"]
    assert (stored["pixel_mean"], stored["pixel_std"]) == HALF
    assert read_checkpoint(tmp_path / "run").recipe.model.pixel_mean == (127.5,) * 3
    assert load_model(tmp_path / "run").transform.mean.flatten().tolist() == [0.5] * 3
    again.training.epochs = 2
    engine.train(again, tmp_path / "run", resume=True)
    again.model.pixel_mean, again.training.epochs = (1.0, 2.0, 3.0), 3
    with pytest.raises(ValueError, match=r"a different --model\.pixel-mean"):
        engine.train(again, tmp_path / "run", resume=True)


def test_recipes_with_numbers_still_load() -> None:
    values = get_recipe(ATSS_R50).as_dict()
    values["model"] |= {"pixel_mean": IMAGENET[0], "pixel_std": IMAGENET[1]}
    recipe = Recipe.from_dict(json.loads(json.dumps(values)))
    assert _numbers(recipe, backbone="timm/test_convnext") == IMAGENET


def test_margins_are_of_the_mean_colour(tiny_recipe: Recipe) -> None:
    tiny_recipe.model.backbone, tiny_recipe.data.augmentation = "timm/test_convnext", "ssd"
    dataset = build_dataset(tiny_recipe, "train")
    (zoom_out,) = [t for t in dataset.transform.transforms if isinstance(t, v2.RandomZoomOut)]
    assert zoom_out.fill[tv_tensors.Image] == [127.5] * 3
    assert tiny_recipe.model.pixel_mean == ()
