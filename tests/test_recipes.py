import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from ranksort.models import ATSS
from ranksort.recipes import Recipe, create_model, get_recipe, list_recipes
from ranksort.recipes.build import build_dataset, build_optimizer, describe, summarize

ATSS_R50 = "ranksort_atss_r50_fpn_1x_coco"
TINY = {"backbone": "resnet18", "channels": 64, "head_convs": 1}


def test_list_recipes() -> None:
    names = list_recipes()
    assert {ATSS_R50, "ranksort_atss_lite0_small"} <= set(names)
    assert len(set(names)) == len(names)
    for name in names:
        recipe = get_recipe(name)
        assert recipe.name == name
        assert get_recipe(name) == recipe
        assert get_recipe(name) is not recipe


@pytest.mark.parametrize("name", list_recipes())
def test_recipe_survives_json(name: str) -> None:
    recipe = get_recipe(name)
    assert Recipe.from_dict(json.loads(json.dumps(recipe.as_dict()))) == recipe


def test_changed_recipe_survives_json() -> None:
    recipe = get_recipe(ATSS_R50)
    recipe.model.min_size = 480
    recipe.data.train_min_sizes = (320, 480)
    recipe.data.root = "somewhere/Größe"
    recipe.training.ema_decay = 0.999
    back = Recipe.from_dict(json.loads(json.dumps(recipe.as_dict())))
    assert back == recipe
    assert back != get_recipe(ATSS_R50)


def test_few_settings_in_flat_groups() -> None:
    groups = [getattr(Recipe("x"), f.name) for f in dataclasses.fields(Recipe) if f.name != "name"]
    assert len(groups) == 5
    leaves = [getattr(group, field.name) for group in groups for field in dataclasses.fields(group)]
    assert len(leaves) <= 63
    assert all(isinstance(leaf, (str, int, float, bool, tuple)) for leaf in leaves)


def test_published_settings_of_atss() -> None:
    recipe = get_recipe(ATSS_R50)
    assert (recipe.model.min_size, recipe.model.max_size) == (800, 1333)
    assert (recipe.optimizer.lr, recipe.optimizer.lr_batch_size, recipe.training.batch_size) == (0.008, 16, 16)
    assert recipe.optimizer.weight_decay == 1e-4
    assert (recipe.training.epochs, recipe.optimizer.milestones, recipe.optimizer.warmup_steps) == (12, (8, 11), 500)
    assert (recipe.model.score_threshold, recipe.model.nms_threshold) == (0.05, 0.6)
    assert recipe.data.flip == 0.5


def test_published_settings_of_yolact() -> None:
    recipe = get_recipe("ranksort_yolact_r50_55e_coco")
    assert (recipe.optimizer.lr, recipe.optimizer.lr_batch_size, recipe.optimizer.weight_decay) == (0.006, 32, 5e-4)
    assert (recipe.optimizer.schedule, recipe.training.epochs, recipe.training.batch_size) == ("cosine", 55, 32)
    assert recipe.data.augmentation == "ssd"
    assert 4 < recipe.data.min_box_size < 4 + 1e-9
    assert recipe.model.has_masks
    model = create_model(recipe, num_classes=2)
    assert (model.transform.min_size, model.transform.keep_ratio, model.nms_threshold) == (550, False, 0.5)
    assert all(p.requires_grad for p in model.parameters())
    assert model.backbone.body.bn1.training


def test_published_settings_of_solov2() -> None:
    light, full = (get_recipe(f"ranksort_solov2_{x}_fpn_3x") for x in ("light_448_r34", "r101"))
    assert (light.optimizer.lr, light.training.batch_size, light.optimizer.clip_norm) == (0.012, 32, 35)
    assert (full.optimizer.lr, full.training.batch_size, full.optimizer.clip_norm) == (0.006, 16, 35)
    assert (light.data.train_min_sizes[0], light.data.train_min_sizes[-1]) == (352, 512)
    assert (light.model.min_size, light.model.max_size, full.model.min_size) == (448, 768, 800)
    for recipe in (light, full):
        assert (recipe.training.epochs, recipe.optimizer.milestones) == (36, (27, 33))
        assert recipe.model.has_masks


RCNNS = {  # detector, backbone, CARAFE, DCN, short sides in training, epochs
    "faster_rcnn_r50_fpn_1x": ("faster_rcnn", "resnet50", False, False, (), 12),
    "faster_rcnn+_r50_fpn_1x": ("faster_rcnn", "resnet50", True, False, (), 12),
    "faster_rcnn_r101_fpn_1x": ("faster_rcnn", "resnet101", False, False, (), 12),
    "faster_rcnn_r101_fpn_mstrain_dcn_3x": ("faster_rcnn", "resnet101", False, True, range(480, 961, 80), 36),
    "faster_rcnn+_r101_fpn_mstrain_dcn_3x": ("faster_rcnn", "resnet101", True, True, range(480, 961, 80), 36),
    "cascade_rcnn_r50_fpn_1x": ("cascade_rcnn", "resnet50", False, False, (), 12),
    "mask_rcnn_r50_fpn_1x": ("mask_rcnn", "resnet50", False, False, (), 12),
    "mask_rcnn+_r50_fpn_1x": ("mask_rcnn", "resnet50", True, False, (), 12),
    "mask_rcnn_r101_fpn_mstrain_3x": ("mask_rcnn", "resnet101", False, False, range(640, 801, 32), 36),
    "mask_rcnn+_r101_fpn_mstrain_3x": ("mask_rcnn", "resnet101", True, False, range(480, 961, 80), 36),
    "mask_rcnn+_r101_dcn_fpn_mstrain_3x": ("mask_rcnn", "resnet101", True, True, range(480, 961, 80), 36),
    "mask_rcnn+_x101_dcn_fpn_mstrain_3x": ("mask_rcnn", "resnext101_64x4d", True, True, range(480, 961, 80), 36),
}


@pytest.mark.parametrize("name", RCNNS)
def test_published_settings_of_the_rcnns(name: str) -> None:
    recipe = get_recipe(f"ranksort_{name}_coco")
    model, optimizer = recipe.model, recipe.optimizer
    detector, backbone, carafe, dcn, sizes, epochs = RCNNS[name]
    assert (model.detector, model.backbone) == (detector, backbone)
    assert (model.upsampling, model.deformable_convs) == ("carafe" if carafe else "nearest", dcn)
    assert model.has_masks == (detector == "mask_rcnn")
    assert (model.score_threshold, model.nms_threshold, model.detections_per_image) == (0.4, 0.5, 100)
    assert recipe.data.train_min_sizes == tuple(sizes)
    assert (recipe.training.epochs, optimizer.milestones) == (epochs, (8, 11) if epochs == 12 else (27, 33))
    assert (optimizer.lr, optimizer.lr_batch_size, recipe.training.batch_size) == (0.012, 16, 16)


def test_published_settings_of_lvis() -> None:
    recipe = get_recipe("ranksort_mask_rcnn_r50_fpn_1x_lvis_v1")
    model = recipe.model
    assert (model.detector, model.num_classes) == ("mask_rcnn", 1203)
    assert (model.score_threshold, model.nms_threshold, model.detections_per_image) == (0.6, 0.5, 300)
    assert recipe.data.train_min_sizes == tuple(range(640, 801, 32))
    assert (recipe.data.repeat_threshold, recipe.evaluation.style) == (1e-3, "lvis")
    assert (recipe.training.epochs, recipe.optimizer.milestones, recipe.optimizer.lr) == (12, (8, 11), 0.012)


def test_setting_of_a_newer_version_is_refused() -> None:
    values = get_recipe(ATSS_R50).as_dict()
    values["model"]["telepathy"] = True
    with pytest.raises(ValueError, match=r"no setting model\.telepathy: update ranksort"):
        Recipe.from_dict(values)


@pytest.mark.parametrize("key", ["__class__", "__dict__", "__init__"])
def test_only_settings_can_be_set(key: str) -> None:
    with pytest.raises(ValueError, match=f"no setting model.{key}"):
        Recipe.from_dict({"name": "x", "model": {key: {}}})


def test_group_of_a_newer_version_is_refused() -> None:
    with pytest.raises(ValueError, match="no setting sponsors"):
        Recipe.from_dict({**Recipe("x").as_dict(), "sponsors": {"who": "nobody"}})


def test_missing_settings_take_their_defaults() -> None:
    recipe = Recipe.from_dict({"name": "x", "model": {"channels": 64}})
    expected = Recipe("x")
    expected.model.channels = 64
    assert recipe == expected


@pytest.mark.parametrize("name", ["ranksort_atss_r50", "", "get_recipe", "Recipe", "__import__"])
def test_unknown_recipe(name: str) -> None:
    with pytest.raises(ValueError, match=r"no recipe .*`ranksort recipes` lists them"):
        get_recipe(name)


def test_recipe_of_the_users_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from ranksort.recipes import Recipe, get_recipe\n"
        "BACKBONE = 'resnet34'\n"
        "def small() -> Recipe:\n"
        f"    recipe = get_recipe({ATSS_R50!r})\n"
        "    recipe.name, recipe.model.backbone = 'small', BACKBONE\n"
        "    return recipe\n"
        "def nameless():\n"
        "    return Recipe()\n"
        "def nothing():\n"
        "    pass\n"
        "number = 3\n"
    )
    recipe = get_recipe(f"{file}:small")
    assert (recipe.name, recipe.model.backbone, recipe.optimizer.lr) == ("small", "resnet34", 0.008)
    assert get_recipe(f"{file}:nameless").name == "nameless"
    with pytest.raises(ValueError, match="has no function other"):
        get_recipe(f"{file}:other")
    with pytest.raises(ValueError, match="has no function number"):
        get_recipe(f"{file}:number")
    with pytest.raises(ValueError, match="must return a ranksort Recipe, not a NoneType"):
        get_recipe(f"{file}:nothing")
    with pytest.raises(FileNotFoundError, match=r"no file .*other\.py with the recipe small"):
        get_recipe(f"{tmp_path / 'other.py'}:small")


def test_create_model_from_a_name_or_a_recipe() -> None:
    recipe = get_recipe(ATSS_R50)
    before = recipe.as_dict()
    model = create_model(recipe, num_classes=7, min_size=320, score_threshold=0.3, **TINY)
    assert recipe.as_dict() == before
    assert isinstance(model, ATSS)
    assert model.training
    assert (model.num_classes, model.score_threshold, model.nms_threshold) == (7, 0.3, 0.6)
    assert model.transform.min_size == 320
    assert model.transform.max_size == 1333
    assert create_model(ATSS_R50, **TINY).num_classes == 80


@pytest.mark.parametrize("name", list_recipes())
def test_every_recipe_makes_a_model(name: str) -> None:
    with torch.device("meta"):  # without filling hundreds of megabytes of weights
        assert create_model(name, num_classes=2).num_classes == 2


def test_overrides_reach_the_model() -> None:
    model = create_model(
        ATSS_R50,
        backbone="resnet18",
        channels=64,
        head_convs=2,
        frozen_stages=-1,
        train_batch_norm=True,
        max_size=500,
        pixel_mean=(1.0, 2.0, 3.0),
        nms_threshold=0.7,
        detections_per_image=5,
    )
    assert model.fpn.laterals[0].out_channels == 64
    assert len(model.head.class_tower) == 2
    assert all(p.requires_grad for p in model.parameters())
    assert model.backbone.body.bn1.training
    assert (model.transform.max_size, model.nms_threshold, model.detections_per_image) == (500, 0.7, 5)
    assert (model.transform.mean.flatten() * 255).tolist() == pytest.approx([1, 2, 3])


MULTI_SCALE = "ranksort_solov2_light_448_r34_fpn_3x"


def test_min_size_of_a_multi_scale_recipe_is_that_of_training_too() -> None:
    model = create_model(MULTI_SCALE, backbone="resnet18", channels=64, min_size=64, max_size=128)
    image = torch.rand(3, 100, 120)
    sizes = {model.transform.train()([image])[0].sizes[0] for _ in range(10)}
    assert sizes == {(64, 77)} == set(model.transform.eval()([image])[0].sizes)
    recipe = get_recipe(MULTI_SCALE)
    create_model(recipe, backbone="resnet18", channels=64, min_size=64)
    assert recipe == get_recipe(MULTI_SCALE)


def test_a_setting_that_was_empty_is_named_when_a_run_is_resumed() -> None:
    before, now = get_recipe("ranksort_atss_lite0_small"), get_recipe("ranksort_atss_lite0_small")
    now.training.weights = "runs/other"
    with pytest.raises(ValueError, match=r"with a different --training\.weights \(none before, other now\)"):
        now.check_resumes(before)


def test_multi_scale_recipe_keeps_its_sizes_under_other_overrides() -> None:
    model = create_model(MULTI_SCALE, backbone="resnet18", channels=64, max_size=400, score_threshold=0.3)
    assert model.transform.train_min_sizes == (352, 384, 416, 448, 480, 512)


@pytest.mark.parametrize(
    ("name", "min_size", "train_min_sizes", "expected"),
    [
        (ATSS_R50, 480, (), "short side 480 px, long side at most 1333 px"),
        (ATSS_R50, 480, (480,), "short side 480 px, long side at most 1333 px"),
        (
            ATSS_R50,
            480,
            (400, 480),
            "short side 400 or 480 px in training, 480 px in evaluation, long side at most 1333 px",
        ),
        (
            ATSS_R50,
            320,
            (400, 480),
            "short side 400 or 480 px in training, 320 px in evaluation, long side at most 1333 px",
        ),
        ("ranksort_yolact_r50_55e_coco", 300, (), "300 x 300 px"),
    ],
)
def test_description_says_how_large_images_are(
    tiny_data: Path, name: str, min_size: int, train_min_sizes: tuple[int, ...], expected: str
) -> None:
    recipe = get_recipe(name)
    recipe.model.min_size, recipe.data.train_min_sizes, recipe.data.root = min_size, train_min_sizes, str(tiny_data)
    described = describe(recipe, build_dataset(recipe, "train"), build_dataset(recipe, "val"))
    assert f"\nimages: {expected}\n" in described
    assert ("the evaluation size of 320 px is outside the training sizes" in described) == (min_size == 320)
    assert summarize(recipe, build_dataset(recipe, "val"))["image size"] == expected


def test_the_backbone_has_a_rate_of_its_own() -> None:
    recipe = get_recipe("ranksort_atss_lite0_small")
    model = create_model(recipe, num_classes=3)
    rest, backbone = build_optimizer(recipe, model).param_groups
    assert backbone["lr"] == pytest.approx(recipe.optimizer.backbone_rate * rest["lr"])
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    of_backbone, of_rest = ({names[id(p)] for p in group["params"]} for group in (backbone, rest))
    assert of_backbone == {n for n, p in model.named_parameters() if p.requires_grad and n.startswith("backbone.")}
    assert of_rest == {n for n, p in model.named_parameters() if p.requires_grad} - of_backbone
    recipe.optimizer.backbone_rate = 1.0
    assert len(build_optimizer(recipe, model).param_groups) == 1


def test_the_rate_of_a_pretrained_backbone_stays() -> None:
    before, now = get_recipe("ranksort_atss_lite0_small"), get_recipe("ranksort_atss_lite0_small")
    now.optimizer.backbone_rate = 0.5
    with pytest.raises(ValueError, match=r"a different --optimizer\.backbone-rate \(0\.1 before, 0\.5 now\)"):
        now.check_resumes(before)


def test_description_says_the_scaled_rate_and_too_many_loaders(tiny_data: Path) -> None:
    recipe = get_recipe(ATSS_R50)
    recipe.data.root, recipe.training.batch_size, recipe.data.workers = str(tiny_data), 2, 2000
    train_set, val_set = build_dataset(recipe, "train"), build_dataset(recipe, "val")
    described = describe(recipe, train_set, val_set)
    assert "\nlearning rate 0.001 (the recipe's 0.008 for 16 images per step, scaled to 2); " in described
    assert re.search(r"\nwarning: 2000 processes load images on \d+ cores?: set a lower --data.workers", described)
    recipe.data.workers, recipe.optimizer.backbone_rate = 0, 0.1
    described = describe(recipe, train_set, val_set)
    assert "processes load images" not in described
    assert ", scaled to 2), of the backbone 0.0001; " in described
    assert summarize(recipe, val_set)["learning rate"].startswith(
        "0.001 for 2 images per step, of the backbone 0.0001, sgd"
    )


def test_channels_which_the_norms_cannot_group() -> None:
    for recipe, channels, step in ((ATSS_R50, 80, 32), ("ranksort_solov2_light_448_r34_fpn_3x", 96, 64)):
        with pytest.raises(
            ValueError, match=f"--model.channels must be a multiple of {step} and at least 64, got {channels}"
        ):
            create_model(recipe, channels=channels)


@pytest.mark.parametrize(
    ("option", "value"),
    [("prior", 0.0), ("prior", 1.0), ("score_threshold", 1.5), ("nms_threshold", -1.0), ("detections_per_image", 0)],
)
def test_numbers_out_of_range(option: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"--model\.{option.replace('_', '-')} must be .*, got {value}"):
        create_model(ATSS_R50, **TINY, **{option: value})


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("optimizer.lr", -0.01),
        ("optimizer.lr", float("nan")),
        ("optimizer.weight_decay", -1e-4),
        ("optimizer.clip_norm", -35.0),
        ("optimizer.milestones", (8, -1)),
        ("training.max_minutes", float("nan")),
        ("training.ema_decay", 1.5),
        ("training.seed", -1),
        ("data.min_box_size", float("nan")),
    ],
)
def test_numbers_of_the_other_groups_out_of_range(option: str, value: float | tuple[int, ...]) -> None:
    recipe = Recipe("own")
    group, name = option.split(".")
    setattr(getattr(recipe, group), name, value)
    with pytest.raises(ValueError, match=rf"--{option.replace('_', '-')} must be (0 or more|within 0\.\.1), got "):
        recipe.check()


@pytest.mark.parametrize(
    ("option", "value"),
    [("data.augmentation", "jiter"), ("optimizer.schedule", "cosin"), ("training.best", "ap"), ("model.loss", "rs")],
)
def test_words_that_are_not_possible(option: str, value: str) -> None:
    recipe = Recipe("own")
    group, name = option.split(".")
    setattr(getattr(recipe, group), name, value)
    with pytest.raises(ValueError, match=rf"--{option} must be .* or .*, got {value}"):
        recipe.check()


def test_upsampling_of_a_detector_which_has_none_to_choose() -> None:
    with pytest.raises(ValueError, match=r"--model\.upsampling carafe is for R-CNNs, not for atss"):
        create_model(ATSS_R50, upsampling="carafe")


def test_unknown_override() -> None:
    with pytest.raises(
        ValueError, match=r"no field 'learning_rate'; it has detector, loss, backbone, .*detections_per_image"
    ):
        create_model(ATSS_R50, learning_rate=0.1)


def test_model_is_the_same_for_the_same_seed() -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(create_model(ATSS_R50, num_classes=2, **TINY).state_dict())
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([], "these are not the settings"),
        ({}, "these are not the settings"),
        ({"name": "x", "model": 3}, "the settings model of a recipe cannot be 3"),
        ({"name": "x", "model": {"channels": "64"}}, "the setting model.channels of a recipe cannot be '64'"),
        ({"name": "x", "model": {"pixel_mean": 1.0}}, "the setting model.pixel_mean"),
        ({"name": "x", "model": {"pretrained_backbone": 1}}, "the setting model.pretrained_backbone"),
    ],
)
def test_values_that_are_no_recipe(values: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Recipe.from_dict(values)
