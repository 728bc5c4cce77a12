"""Starting from the weights of another model."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from published_atss import published_atss
from torch import Tensor

from ranksort import cli
from ranksort.checkpoints import read_checkpoint, save_model
from ranksort.commands.defaults import FINE_TUNING_RATE, FINE_TUNING_WARMUP, default_recipe
from ranksort.data.coco import COCO_CATEGORIES
from ranksort.data.coco_columns import Category
from ranksort.engine import train
from ranksort.fine_tuning import match_names, read_weights, start_from
from ranksort.models import ATSS, Detector
from ranksort.recipes import Recipe, create_model, get_recipe
from ranksort.recipes.build import with_pixel_statistics
from ranksort.recipes.detectors import DETECTORS

OWN = Path(__file__).parents[1] / "examples" / "my_detector.py"
NAMES = ["cat", "Dog", "bird"]


def _recipe(detector: str = "atss", **model: Any) -> Recipe:
    recipe = Recipe("tiny")
    settings = {"backbone": "resnet18", "channels": 64, "head_convs": 1, "min_size": 96, "max_size": 128}
    for name, value in {"detector": detector, "proposals": 100, **settings, **model}.items():
        setattr(recipe.model, name, value)
    recipe.model.score_threshold, recipe.model.detections_per_image = 0.2, 1000
    return recipe


def _trained(recipe: Recipe, names: Sequence[str]) -> Detector:
    """A model whose outputs for each class differ, as after training; of the first class it finds nothing."""
    torch.manual_seed(0)
    model = create_model(recipe, num_classes=len(names))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if model.outputs_per_class(name):
                parameter.normal_(std=0.05)
            if "class_logits" in name:  # of each anchor of a cell
                parameter[:: len(names)] = -9 if name.endswith("bias") else 0
    return model


def _save(path: Path, recipe: Recipe, names: Sequence[str] = NAMES, model: Detector | None = None) -> Path:
    recipe.model = with_pixel_statistics(recipe.model)
    save_model(path, model or _trained(recipe, names), recipe, [Category(i, name) for i, name in enumerate(names)])
    return path


def _classes(state_dict: dict[str, Tensor], chosen: Sequence[int]) -> list[Tensor]:
    """Rows of ATSS's class layer, three anchors at a cell."""
    layer = [state_dict[f"head.class_logits.{kind}"] for kind in ("weight", "bias")]
    return [x.unflatten(0, (3, -1))[:, list(chosen)] for x in layer]


def _assert_same(ours: Any, expected: Any) -> None:
    torch.testing.assert_close(ours, expected, rtol=0, atol=0)


@pytest.fixture(scope="module")
def atss(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _save(tmp_path_factory.mktemp("atss") / "atss.safetensors", _recipe())


@pytest.mark.parametrize("detector", [*DETECTORS, f"{OWN}:CentreDetector"])
def test_classes_keep_what_they_have_learnt(detector: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The detections of a model with two of the classes, in another order, and a new one, are those of the old model of these classes."""
    if detector not in DETECTORS and not OWN.is_file():
        pytest.skip("the examples/ of a checkout are not here")
    recipe = _recipe(detector)
    old = _trained(recipe, NAMES)
    path = _save(tmp_path / "old.safetensors", recipe, model=old)
    _assert_same(create_model(recipe, class_names=NAMES, weights=path).state_dict(), old.state_dict())
    assert capsys.readouterr().out == ""

    new = create_model(recipe, class_names=["cow", "bird", "DOG"], weights=path, prior=1e-6)
    assert new.class_names == ("cow", "bird", "DOG")
    assert "2 of 3 by name; bird, Dog as DOG; new: cow; dropped: cat" in capsys.readouterr().out
    image = [torch.rand(3, 96, 128)]
    with torch.no_grad():
        (before,), (after,) = old.eval()(image), new.eval()(image)
    assert before["labels"].unique().tolist() == [1, 2]
    expected = {**before, "labels": 3 - before["labels"]}
    torch.testing.assert_close(after, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("detector", ["atss", "mask_rcnn", "solov2"])
def test_other_sizes_start_new(detector: str, tmp_path: Path) -> None:
    path = _save(tmp_path / "old.safetensors", _recipe(detector))
    old = read_checkpoint(path).state_dict
    recipe = _recipe(detector, channels=128, min_size=128)
    model = create_model(recipe, num_classes=3)
    taken = start_from(read_weights(path, recipe), model, recipe, NAMES)
    state = model.state_dict()
    assert all(torch.equal(old[name], x) for name, x in state.items() if name.startswith("backbone."))
    biases = {
        name
        for name in state
        if old[name.replace("bias", "weight")].shape != state[name.replace("bias", "weight")].shape
    }
    assert biases <= set(taken.new_tensors)  # not those of other weights


def test_a_class_added_later(atss: Path) -> None:
    old = read_checkpoint(atss).state_dict
    state = create_model(_recipe(prior=0.2), class_names=["ant", *NAMES], weights=atss).state_dict()
    _assert_same(_classes(state, [1, 2, 3]), _classes(old, [0, 1, 2]))
    weight, bias = _classes(state, [0])
    assert 0 < float(weight.abs().max()) < 0.1  # drawn
    torch.testing.assert_close(bias.sigmoid(), torch.full((3, 1), 0.2))
    assert all(torch.equal(old[name], x) for name, x in state.items() if "class_logits" not in name)


def test_names_are_matched_once_and_exactly_first() -> None:
    assert match_names(["dog", "DOG", "Dog"], ["Dog", "dog"]) == {0: 1, 2: 0}
    assert match_names(["CAT", "cow"], ["cow", "Cat"]) == {0: 1, 1: 0}
    assert match_names(["a", "a", "a"], ["a", "b", "a"]) == {0: 0, 1: 2}
    assert match_names(["x"], []) == {}


def test_classes_without_names(atss: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = read_checkpoint(atss).state_dict
    _assert_same(create_model(_recipe(), num_classes=3, weights=atss).state_dict(), old)
    assert capsys.readouterr().out == ""
    other = create_model(_recipe(), num_classes=5, weights=atss)
    assert "none of 5; new: class 0" in capsys.readouterr().out
    torch.testing.assert_close(other.head.class_logits.bias.sigmoid(), torch.full((15,), 0.01))
    with pytest.raises(ValueError, match="num_classes is 2, but there are 3 class_names"):
        create_model(_recipe(), num_classes=2, class_names=NAMES)


def test_another_backbone_is_no_half_of_one(atss: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All of a ResNet-18 would fit into a ResNet-34."""
    old = read_checkpoint(atss).state_dict
    recipe = _recipe(backbone="resnet34")
    weights = read_weights(atss, recipe)
    assert not weights.has_backbone
    model = create_model(recipe, num_classes=3)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    taken = start_from(weights, model, recipe, NAMES)
    for name, x in model.state_dict().items():
        assert torch.equal(x, (before if name.startswith("backbone.") else old)[name]), name
    assert taken.parts["backbone"][0] == 0
    assert taken.notes == ["settings that differ: backbone resnet34 (resnet18 there)"]


def test_deformable_convolutions_are_added_to_a_backbone(atss: Path) -> None:
    state = create_model(_recipe(deformable_convs=True), class_names=NAMES, weights=atss).state_dict()
    old = read_checkpoint(atss).state_dict
    assert all(torch.equal(state[name], x) for name, x in old.items())
    assert not any(bool(x.any()) for name, x in state.items() if "conv_offset" in name)


def test_what_a_loss_keeps_of_a_training_is_not_taken(tmp_path: Path) -> None:
    recipe = _recipe(loss="average_lrp")
    old = _trained(recipe, NAMES)
    old.criterion.loss.localization_weight.fill_(7)
    path = _save(tmp_path / "old.safetensors", recipe, model=old)
    assert create_model(recipe, class_names=NAMES, weights=path).criterion.loss.localization_weight == 50
    create_model(_recipe(), class_names=NAMES, weights=path)


def test_hardly_anything_fits(atss: Path) -> None:
    with pytest.raises(
        ValueError, match=r"atss\.safetensors \(atss, resnet18\) do not fit this model \(paa, resnet34\)"
    ):
        create_model(_recipe("paa", backbone="resnet34", channels=96), weights=atss)


def test_weights_which_are_not_finite(tmp_path: Path) -> None:
    recipe = _recipe()
    model = _trained(recipe, NAMES)
    model.head.scales[0].data.fill_(torch.nan)
    path = _save(tmp_path / "nan.safetensors", recipe, model=model)
    with pytest.raises(ValueError, match=r"nan\.safetensors contains numbers that are not finite, in head\.scales\.0"):
        create_model(recipe, num_classes=3, weights=path)


class _Undeclared(ATSS):
    class_layers = {}  # noqa: RUF012


def test_a_detector_has_to_name_its_class_layers(atss: Path) -> None:
    recipe = _recipe(detector=_Undeclared)  # type: ignore[arg-type]
    create_model(recipe, class_names=NAMES, weights=atss)
    with pytest.raises(ValueError, match=r"_Undeclared does not name its layers .* set `class_layers`"):
        create_model(recipe, class_names=NAMES[::-1], weights=atss)


def test_pixels_are_normalised_as_the_weights_were_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mean, std = (10.0, 20.0, 30.0), (40.0, 50.0, 60.0)
    path = _save(tmp_path / "old.safetensors", _recipe(pixel_mean=mean, pixel_std=std))
    model = create_model(_recipe(), class_names=NAMES, weights=path)
    torch.testing.assert_close(model.transform.mean.flatten() * 255, torch.tensor(mean))
    torch.testing.assert_close(model.transform.std.flatten() * 255, torch.tensor(std))
    assert capsys.readouterr().out == ""
    create_model(_recipe(pixel_mean=(1.0, 2.0, 3.0)), class_names=NAMES, weights=path)
    assert "differ: pixel_mean (1.0, 2.0, 3.0) ((10.0, 20.0, 30.0) there)" in capsys.readouterr().out
    # Another backbone starts from ImageNet's weights.
    other = create_model(_recipe(backbone="resnet34"), class_names=NAMES, weights=path)
    torch.testing.assert_close(other.transform.mean.flatten(), torch.tensor([0.485, 0.456, 0.406]))


def test_a_published_file(tmp_path: Path) -> None:
    recipe = _recipe()
    model = _trained(recipe, [category.name for category in COCO_CATEGORIES])
    content = {"state_dict": published_atss(model), "meta": {"epoch": 12}}
    torch.save(content, path := tmp_path / "published.pth")
    state = create_model(recipe, class_names=["unicorn", "zebra", "Person"], weights=path).state_dict()
    labels = [[c.name for c in COCO_CATEGORIES].index(name) for name in ("zebra", "person")]
    _assert_same(_classes(state, [1, 2]), _classes(model.state_dict(), labels))

    three = _trained(recipe, NAMES)
    content["state_dict"] = published_atss(three)
    torch.save(content, path)
    assert read_weights(path, recipe).checkpoint.categories == []
    model = create_model(recipe, num_classes=3)
    assert "3 of 3 by place" in str(start_from(read_weights(path, recipe), model, recipe, ["x", "y", "z"]))
    _assert_same(model.state_dict(), three.state_dict())
    content["meta"] = {"CLASSES": ("z", "y", "x")}
    torch.save(content, path)
    state = create_model(recipe, class_names=["x", "y", "z"], weights=path).state_dict()
    _assert_same(_classes(state, [0, 1, 2]), _classes(three.state_dict(), [2, 1, 0]))


def test_a_published_file_with_a_number_in_place_of_a_row(tmp_path: Path) -> None:
    recipe = _recipe()
    weights = published_atss(_trained(recipe, NAMES)) | {"bbox_head.atss_cls.bias": torch.tensor(1.0)}
    torch.save({"state_dict": weights}, path := tmp_path / "published.pth")
    with pytest.raises(ValueError, match=r"published\.pth is neither a ranksort model nor published weights"):
        read_weights(path, recipe)


@pytest.mark.parametrize("content", [{"state_dict": {"x": torch.zeros(2)}}, {"state_dict": [1]}, {"x": 1}])
def test_a_file_of_something_else(tmp_path: Path, content: Any) -> None:
    torch.save(content, path := tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth is neither a ranksort model nor published weights"):
        create_model("ranksort_atss_r50_fpn_1x_coco", weights=path)


def test_default_learning_rate_and_warm_up() -> None:
    base = get_recipe("ranksort_atss_lite0_small")
    arguments = ["train", "ranksort_atss_lite0_small"]
    for option in (["--training.weights", "x"], ["--training.weights=x"]):
        lowered = default_recipe([*arguments, *option]).optimizer
        assert lowered.lr == FINE_TUNING_RATE * base.optimizer.lr
        assert lowered.warmup_steps == round(FINE_TUNING_WARMUP * base.optimizer.warmup_steps)
    for option in ([], ["--training.weights", "x", "--resume"], ["--training.weights="]):
        if "--resume" not in option:
            assert default_recipe([*arguments, *option]).optimizer == base.optimizer


def test_weights_that_are_not_there(tiny_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", "ranksort_atss_lite0_small", "--data.root", str(tiny_data), "--training.weights"]
    for missing in ("gone.ckpt", "gone.pth", "gone"):
        with pytest.raises(SystemExit) as stopped:
            cli.main([*arguments, missing])
        assert stopped.value.code == 2
        (sentence,) = capsys.readouterr().err.strip().splitlines()
        assert missing in sentence


def test_a_run_from_a_run(
    tiny_recipe: Recipe, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_recipe.training.epochs = 1
    first = tmp_path / "first"
    tiny_recipe.training.ema_decay = 0.5
    train(tiny_recipe, first)
    old = read_checkpoint(first)
    names = [category.name for category in old.categories]
    root = shutil.copytree(tiny_data, tmp_path / "data")
    for file in (root / "annotations").iterdir():  # the same classes in the opposite order, and one more
        content = json.loads(file.read_text())
        for category in content["categories"]:
            category["id"] = 100 - category["id"]
        for annotation in content["annotations"]:
            annotation["category_id"] = 100 - annotation["category_id"]
        content["categories"].append({"id": 1, "name": "unicorn"})
        file.write_text(json.dumps(content))

    recipe = get_recipe_like(tiny_recipe, root, first)
    recipe.optimizer.lr = recipe.optimizer.weight_decay = 0.0  # so that the weights stay what they were
    second = tmp_path / "second"
    capsys.readouterr()
    train(recipe, second)
    out = capsys.readouterr().out
    assert f"weights of {first}" in out
    assert "random weights" not in out
    report = json.loads((second / "weights.json").read_text())
    assert report["classes"] == dict(zip(names[::-1], names[::-1], strict=True))
    assert report["new_classes"] == ["unicorn"]
    new = read_checkpoint(second)
    assert new.recipe.model.frozen_stages == 1  # as the recipe says: the backbone is no random one
    assert [category.name for category in new.categories] == ["unicorn", *names[::-1]]
    n = len(names)
    _assert_same(_classes(new.state_dict, range(1, n + 1)), _classes(old.state_dict, range(n)[::-1]))

    shutil.rmtree(first)
    recipe.training.epochs = 2
    train(recipe, second, resume=True)
    again = read_checkpoint(second / "checkpoints" / "last.ckpt")
    assert again.recipe.model == new.recipe.model
    _assert_same(again.state_dict["head.class_logits.weight"], new.state_dict["head.class_logits.weight"])
    recipe.training.weights = "other"
    with pytest.raises(ValueError, match=r"cannot be resumed with a different --training\.weights"):
        train(recipe, second, resume=True)


def get_recipe_like(recipe: Recipe, root: Path, weights: Path) -> Recipe:
    recipe = Recipe.from_dict(recipe.as_dict())
    recipe.data.root, recipe.training.weights, recipe.training.ema_decay = str(root), str(weights), 0.0
    recipe.model.frozen_stages, recipe.model.train_batch_norm = 1, False
    return recipe
