import io
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from published_atss import published_atss
from safetensors.torch import save
from torch import Tensor, nn

from ranksort.checkpoints import carry_scores, load_model, load_weights, metadata, read_checkpoint, save_model
from ranksort.data.coco_columns import Category
from ranksort.evaluation.calibration import Calibrator, Curve
from ranksort.evaluation.calibration_file import calibrator_content
from ranksort.evaluation.thresholds import Wish
from ranksort.losses.criteria import CRITERIA, AverageLRP
from ranksort.losses.detection import DetectionLosses, rank_sort_detection_losses
from ranksort.models import Detector
from ranksort.published import convert_checkpoint
from ranksort.recipes import Recipe, create_model, get_recipe
from ranksort.recipes.build import with_pixel_statistics

CATEGORIES = [Category(3, "dog"), Category(17, "Kätzchen")]


def _recipe() -> Recipe:
    recipe = get_recipe("ranksort_atss_r50_fpn_1x_coco")
    recipe.name = "tiny"
    recipe.model.backbone, recipe.model.channels, recipe.model.head_convs = "resnet18", 64, 1
    recipe.model.min_size, recipe.model.max_size = 64, 128
    recipe.model = with_pixel_statistics(recipe.model)  # as it is stored
    return recipe


@pytest.fixture(scope="module")
def model() -> Detector:
    return create_model(_recipe(), num_classes=2)


def _run_checkpoint(model: Detector) -> dict[str, Any]:
    """What matters of a training run's .ckpt."""
    weights = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    return {"state_dict": weights, "epoch": 3, "ranksort": metadata(_recipe(), CATEGORIES)}


def _assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_safetensors_round_trip(tmp_path: Path, model: Detector) -> None:
    path = tmp_path / "model.safetensors"
    save_model(path, model, _recipe(), CATEGORIES)
    checkpoint = read_checkpoint(path)
    assert checkpoint.recipe == _recipe()
    assert checkpoint.categories == CATEGORIES
    _assert_same(checkpoint.state_dict, model.state_dict())


@pytest.mark.parametrize("number", [0, 1, 3])
def test_each_class_needs_a_name(tmp_path: Path, model: Detector, number: int) -> None:
    """Without them, a file was written that could not be loaded."""
    categories = [Category(n, str(n)) for n in range(number)]
    with pytest.raises(ValueError, match=f"^the model has 2 classes, but the number of categories is {number}$"):
        save_model(tmp_path / "model.safetensors", model, _recipe(), categories)
    assert not any(tmp_path.iterdir())


class _WithState(nn.Module):
    """RS Loss with a running mean, as a loss of a user's own may have."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, *args: Any, **kwargs: Any) -> DetectionLosses:
        return rank_sort_detection_losses(*args, **kwargs)


@pytest.mark.parametrize("losses", [_WithState(), AverageLRP()])
def test_a_model_is_loaded_without_the_loss_that_trained_it(tmp_path: Path, losses: nn.Module) -> None:
    """The state of `losses=` is in the file, which could not be loaded, though its recipe has another loss."""
    model = create_model(_recipe(), num_classes=2, losses=losses)
    path = tmp_path / "model.safetensors"
    save_model(path, model, _recipe(), CATEGORIES)
    loaded = load_model(path)
    images = [torch.rand(3, 48, 64)]
    torch.testing.assert_close(loaded(images), model.eval()(images), rtol=0, atol=0)
    for loss in CRITERIA:
        assert read_checkpoint(path).build(loss=loss)(images)


def test_the_state_of_the_loss_of_a_recipe_is_loaded(tmp_path: Path) -> None:
    recipe = _recipe()
    recipe.model.loss = "average_lrp"
    losses = AverageLRP()
    losses.loss.localization_weight.fill_(7)
    model = create_model(recipe, num_classes=2, losses=losses)
    assert model.state_dict()["criterion.loss.localization_weight"] == 7
    save_model(tmp_path / "model.safetensors", model, recipe, CATEGORIES)
    _assert_same(load_model(tmp_path / "model.safetensors").state_dict(), model.state_dict())


def test_loaded_model_detects_the_same(tmp_path: Path, model: Detector) -> None:
    path = tmp_path / "model.safetensors"
    save_model(path, model, _recipe(), CATEGORIES)
    loaded = load_model(str(path))
    assert not loaded.training
    assert loaded.class_names == ("dog", "Kätzchen")
    assert loaded.transform.min_size == 64
    loaded.score_threshold = model.score_threshold = 0.005
    images = [torch.rand(3, 64, 90)]
    with torch.no_grad():
        (ours,), (expected,) = loaded(images), model.eval()(images)
    assert len(expected["scores"]) > 5
    torch.testing.assert_close(ours, expected, rtol=0, atol=0)
    (found,) = loaded(images)
    assert not found["boxes"].requires_grad
    for device in ("cuda:99", "nonsense"):
        with pytest.raises(ValueError, match=f"the device '{device}' cannot be used"):
            load_model(path, device)


def test_checkpoint_of_a_run(tmp_path: Path, model: Detector) -> None:
    path = tmp_path / "last.ckpt"
    torch.save(_run_checkpoint(model), path)
    checkpoint = read_checkpoint(path)
    assert (checkpoint.recipe, checkpoint.categories) == (_recipe(), CATEGORIES)
    _assert_same(checkpoint.state_dict, model.state_dict())
    assert checkpoint.build(score_threshold=0.4).score_threshold == 0.4


def _scores() -> dict[str, Any]:
    """What validation data say of the model's scores; as JSON, as it is when it is read."""
    curve = Curve(np.array([0.0, 1.0]), np.array([0.0, 0.5]))
    calibrator = Calibrator("iou", "linear", CATEGORIES, np.array([30, 3]), [curve, None], curve)
    rows = [{"category_id": c.id, "class": c.name, "threshold": 0.5} for c in CATEGORIES]
    content = {
        "iou": calibrator_content(calibrator),
        "thresholds": {"iou_type": "bbox", "default": 0.5, "thresholds": rows},
    }
    return json.loads(json.dumps(content))


def test_checkpoints_carry_calibrations_and_thresholds(tmp_path: Path, model: Detector) -> None:
    ckpt, tensors, plain = (tmp_path / name for name in ("some.ckpt", "m.safetensors", "plain.safetensors"))
    torch.save(_run_checkpoint(model), ckpt)
    carry_scores(ckpt, _scores())
    save_model(tensors, model, _recipe(), CATEGORIES, _scores())
    save_model(plain, model, _recipe(), CATEGORIES)
    images = [torch.rand(3, 64, 90)]
    for path in (ckpt, tensors):
        assert read_checkpoint(path).scores == _scores()
        _assert_same(read_checkpoint(path).state_dict, model.state_dict())
        raw, calibrated = load_model(path), load_model(path, calibrated=True)
        raw.score_threshold = calibrated.score_threshold = 0.005
        with torch.no_grad():
            (given,), (worth,) = raw(images), calibrated(images)
        assert len(given["scores"]) > 5
        torch.testing.assert_close(worth["scores"], given["scores"].double() / 2, rtol=0, atol=1e-9)
        assert raw.thresholds is not None
        assert raw.thresholds.reach(Wish("lrp")).values == [0.5, 0.5]
        with pytest.raises(FileNotFoundError, match="has no calibration"):
            load_model(path, calibrated="precision")
    assert read_checkpoint(plain).scores == {}
    assert load_model(plain).thresholds is None
    with pytest.raises(FileNotFoundError, match=rf"{plain} has no calibration.*--calibration FILE"):
        load_model(plain, calibrated=True)
    with pytest.raises(ValueError, match='calibrated must be True, False, "iou" or "precision", got \'probability\''):
        load_model(plain, calibrated="probability")  # type: ignore[arg-type]
    (tmp_path / "c.json").write_text(json.dumps(_scores()["iou"]))
    assert load_model(plain, calibration=tmp_path / "c.json").calibration is not None


def test_run_folder_gives_the_best_checkpoint_else_the_last(tmp_path: Path, model: Detector) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for name, epoch_name in (("last", "of the last"), ("best", "of the best")):
        content = _run_checkpoint(model)
        content["ranksort"]["recipe"]["name"] = epoch_name
        torch.save(content, folder / f"{name}.ckpt")
        assert read_checkpoint(tmp_path).recipe.name == epoch_name


def test_weights_of_create_model(tmp_path: Path, model: Detector) -> None:
    path = tmp_path / "model.safetensors"
    save_model(path, model, _recipe(), CATEGORIES)
    again = create_model(_recipe(), num_classes=2, weights=path, min_size=96)
    _assert_same(again.state_dict(), model.state_dict())
    assert again.training
    assert again.transform.min_size == 96


def test_load_weights_names_what_differs(model: Detector) -> None:
    state = model.state_dict()
    before = {name: tensor.clone() for name, tensor in state.items()}
    wrong = {name: tensor + 1 for name, tensor in state.items()}
    wrong["head.scales.7"] = wrong.pop("head.scales.4")
    wrong["head.box_deltas.bias"] = torch.zeros(3)
    with pytest.raises(ValueError, match="do not fit") as raised:
        load_weights(model, wrong, "the file")
    sentence = str(raised.value)
    assert "of the file" in sentence
    assert "lacks 1 tensor (head.scales.4)" in sentence
    assert "has 1 unexpected tensor (head.scales.7)" in sentence
    assert "has 1 tensor with another shape (head.box_deltas.bias (3,) for (12,))" in sentence
    assert "\n" not in sentence
    _assert_same(model.state_dict(), before)


def _saved(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


class _Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    trap = tmp_path / "sprung"
    for name, data in {
        "a.ckpt": _saved({"state_dict": _Trap(trap)}),
        "b.pth": pickle.dumps(_Trap(trap)),
        "c.safetensors": pickle.dumps(_Trap(trap)),
    }.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=name) as raised:
            read_checkpoint(tmp_path / name)
        assert "weights_only" not in str(raised.value)  # torch's advice would run it
        assert "\x1b" not in str(raised.value)
        assert "\n" not in str(raised.value)
    assert not trap.exists()


TENSOR = {"model.x": torch.zeros(2)}
DESCRIBED = {"recipe": Recipe("x").as_dict(), "categories": []}


def _safetensors(description: Any) -> bytes:
    text = description if isinstance(description, str) else json.dumps(description)
    return save({"x": torch.zeros(2)}, metadata={"ranksort": text})


@pytest.mark.parametrize(
    ("name", "data", "sentence"),
    [
        ("empty.ckpt", b"", "cannot be read as a checkpoint"),
        ("empty.safetensors", b"", "is not a safetensors file, or it is damaged"),
        ("notes.txt", b"hello world\n", "cannot be read as a checkpoint"),
        ("model.onnx", b"\x08\x0a", "is an ONNX file, which only `ranksort predict` takes"),
        ("image.png", b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "cannot be read as a checkpoint"),
        ("cut.ckpt", _saved({"state_dict": TENSOR, "ranksort": DESCRIBED})[:600], "cannot be read as a checkpoint"),
        ("cut.safetensors", save({"x": torch.zeros(200)})[:300], "is not a safetensors file, or it is damaged"),
        ("list.pth", _saved([1, 2]), "contains a list instead of a checkpoint"),
        ("foreign.pth", _saved({"state_dict": TENSOR}), "is not a ranksort model.*`ranksort convert`"),
        ("plain.pth", _saved(TENSOR), "is not a ranksort model"),
        ("foreign.safetensors", save({"x": torch.zeros(2)}), "is not a ranksort model"),
        ("empty_weights.ckpt", _saved({"state_dict": {}, "ranksort": DESCRIBED}), "is not a ranksort model"),
        ("a.safetensors", _safetensors("{"), "is not a ranksort model"),
        ("b.safetensors", _safetensors({"name": "x"}), "is not a ranksort model"),
        ("c.safetensors", _safetensors("[1]"), "is not a ranksort model"),
        ("d.safetensors", _safetensors({**DESCRIBED, "categories": [1]}), "is not a ranksort model"),
        ("e.ckpt", _saved({"state_dict": TENSOR, "ranksort": "x"}), "is not a ranksort model"),
        ("f.ckpt", _saved({"state_dict": [1], "ranksort": DESCRIBED}), "is not a ranksort model"),
        ("g.ckpt", _saved({"state_dict": {1: torch.zeros(2)}, "ranksort": DESCRIBED}), "is not a ranksort model"),
        ("h.ckpt", _saved({"state_dict": {"model.x": 3}, "ranksort": DESCRIBED}), "is not a ranksort model"),
        ("i.safetensors", _safetensors({**DESCRIBED, "categories": [{"id": 1, "name": 3}]}), "is not a ranksort model"),
        (
            "newer.safetensors",
            _safetensors({"recipe": {"name": "x", "data": {"smell": 1}}, "categories": []}),
            r"no setting data\.smell: update ranksort",
        ),
    ],
)
def test_files_which_are_no_checkpoint(tmp_path: Path, name: str, data: bytes, sentence: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=sentence) as raised:
        read_checkpoint(tmp_path / name)
    assert "\n" not in str(raised.value)
    if "update" not in sentence:
        assert name in str(raised.value)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=5),
    source=st.sampled_from(["archive", "pickle", "safetensors"]),
)
def test_damage_never_shows_the_internals(tmp_path: Path, changes: list[tuple[float, int]], source: str) -> None:
    """A file with some bytes changed is read, or refused in one sentence."""
    content = {"state_dict": TENSOR, "ranksort": DESCRIBED}
    data = bytearray(
        _saved(content)
        if source == "archive"
        else pickle.dumps({"state_dict": {"x": [1.5, "y", (2,)]}}, protocol=2)
        if source == "pickle"
        else _safetensors(DESCRIBED)
    )
    for where, value in changes:
        data[int(where * len(data))] = value
    path = tmp_path / ("damaged.safetensors" if source == "safetensors" else "damaged.ckpt")
    path.write_bytes(bytes(data))
    refusal = None
    try:
        read_checkpoint(path)
    except ValueError as error:
        refusal = error
    if refusal is not None:
        assert type(refusal) is ValueError
        assert "\n" not in str(refusal)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no checkpoint .*gone\.ckpt"):
        read_checkpoint(tmp_path / "gone.ckpt")
    with pytest.raises(FileNotFoundError, match=r"no checkpoint .*gone\.safetensors"):
        load_model(tmp_path / "gone.safetensors")
    with pytest.raises(FileNotFoundError, match=r"is not a run folder: .* checkpoints/best\.ckpt nor last\.ckpt"):
        read_checkpoint(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no checkpoint .*gone\.pth"):
        convert_checkpoint(tmp_path / "gone.pth", _recipe())


def test_conversion_of_a_published_checkpoint(tmp_path: Path, model: Detector) -> None:
    recipe = _recipe()
    recipe.model.num_classes = 2
    published = published_atss(model)
    path = tmp_path / "published.pth"
    torch.save({"meta": {"epoch": 12}, "state_dict": published}, path)
    for source in (published, {"state_dict": published}, path, str(path)):
        _assert_same(convert_checkpoint(source, recipe), model.state_dict())


def test_conversion_of_something_else(tmp_path: Path, model: Detector) -> None:
    recipe = _recipe()
    recipe.model.num_classes = 2
    published = published_atss(model)
    published["neck.lateral_convs.9.conv.weight"] = published.pop("neck.lateral_convs.0.conv.weight")
    path = tmp_path / "published.pth"
    torch.save({"state_dict": published}, path)
    sentence = (
        r"published\.pth do not fit this model: it lacks 1 tensor \(fpn\.laterals\.0\.weight\) and has 1 unexpected"
    )
    with pytest.raises(ValueError, match=sentence):
        convert_checkpoint(path, recipe)
    torch.save(torch.zeros(3), path)
    with pytest.raises(ValueError, match="contains a Tensor instead of a checkpoint"):
        convert_checkpoint(path, recipe)


@pytest.mark.parametrize(
    ("setting", "value", "sentence"),
    [
        ("channels", 10**9, r"no model can be built from the settings of .*last\.ckpt"),
        ("channels", 128, r"the weights of .*last\.ckpt do not fit this model"),
        ("head_convs", 10**9, r"--model\.head-convs must be 100 or less"),
        ("min_size", 10**9, r"--model\.min-size must be 20000 or less"),
        ("head_convs", 1.5, r"the setting model\.head_convs of a recipe cannot be 1\.5"),
        ("pixel_mean", ["a", "b", "c"], r"the setting model\.pixel_mean of a recipe cannot be"),
    ],
)
def test_settings_that_nobody_trained_with(
    tmp_path: Path, model: Detector, setting: str, value: Any, sentence: str
) -> None:
    """They are refused before memory is taken for them."""
    content = _run_checkpoint(model)
    content["ranksort"]["recipe"]["model"][setting] = value
    torch.save(content, tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match=sentence) as raised:
        load_model(tmp_path / "last.ckpt")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_flipped_bits_are_noticed(tmp_path: Path, model: Detector, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    if suffix == ".ckpt":
        torch.save(_run_checkpoint(model), path)
    else:
        save_model(path, model, _recipe(), CATEGORIES)
    good = path.read_bytes()
    for where in (len(good) // 3, len(good) // 2, len(good) - 5000):
        flipped = bytearray(good)
        flipped[where] ^= 4
        path.write_bytes(flipped)
        with pytest.raises(ValueError, match="damaged"):
            read_checkpoint(path)
    path.write_bytes(good)
    _assert_same(read_checkpoint(path).state_dict, model.state_dict())


@pytest.mark.parametrize("spoil", ["string", "shape", "loops", "progress"])
def test_training_states_that_nobody_saved(tiny_recipe: Recipe, tmp_path: Path, spoil: str) -> None:
    from ranksort import engine

    tiny_recipe.evaluation.pictures, tiny_recipe.training.epochs = 0, 1
    engine.train(tiny_recipe, tmp_path / "run")
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    (tmp_path / "run" / "checkpoints" / "best.ckpt").unlink()
    content = torch.load(last, weights_only=True)
    first = content["optimizer_states"][0]["state"][0]
    if spoil in ("string", "shape"):
        first["momentum_buffer"] = "abc" if spoil == "string" else torch.zeros(3)
    elif spoil == "loops":
        content["loops"] = "abc"
    else:
        content["ranksort"]["progress"]["epoch"] = "abc"
    torch.save(content, last)
    tiny_recipe.training.epochs = 2
    with pytest.raises(ValueError, match=r"last\.ckpt cannot be resumed") as raised:
        engine.train(tiny_recipe, tmp_path / "run", resume=True)
    assert "\n" not in str(raised.value)
