"""Folders to hand models on, and `torch.hub`."""

import json
import pickle
from pathlib import Path

import pytest
import torch

import ranksort
from ranksort import cli
from ranksort.checkpoint_file import save_checkpoint
from ranksort.checkpoints import load_model, metadata, read_checkpoint, save_model
from ranksort.data.coco import CocoDataset
from ranksort.data.layouts import find_split
from ranksort.evaluation.thresholds import Wish
from ranksort.hub import _without_folders, from_pretrained, save_pretrained
from ranksort.recipes import Recipe, create_model, get_recipe

ROOT = Path(__file__).parents[1]
REPORT = "/home/me/secret"


@pytest.fixture(scope="module")
def run(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run: a small model in `model.safetensors` and a report of detections which are the objects, shifted."""
    folder = tmp_path_factory.mktemp("run")
    recipe = get_recipe("ranksort_atss_r50_fpn_1x_coco")
    recipe.model.backbone, recipe.model.channels, recipe.model.head_convs = "timm/lcnet_035", 64, 1
    recipe.model.min_size, recipe.model.max_size = 64, 96
    recipe.data.root, recipe.training.weights = REPORT, f"{REPORT}/start.safetensors"
    torch.manual_seed(0)
    data = CocoDataset(*find_split(tiny_data, "val"), training=False)
    model = create_model(recipe, num_classes=len(data.categories))
    (folder / "checkpoints").mkdir()
    save_model(folder / "checkpoints/model.safetensors", model, recipe, data.categories)
    truth = json.loads(data.annotations_path.read_text())
    found = [
        {
            "image_id": a["image_id"],
            "category_id": a["category_id"],
            "bbox": [a["bbox"][0] + 1, *a["bbox"][1:]],
            "score": 0.7,
        }
        for a in truth["annotations"]
    ]
    report = ranksort.evaluate_detections(data.annotations_path, found)
    settings = {
        "recipe": "x",
        "detector": f"atss, timm/x from {REPORT}/best.ckpt",
        "trained on": REPORT,
        "epochs": "12",
    }
    (folder / "report").mkdir()
    (folder / "report/calibration.json").write_text(json.dumps({"about": {"ground truth": f"{REPORT}/val.json"}}))
    report.save(folder / "report", settings | {"evaluated on": f"{REPORT}/my data/val.json, 4 images"})
    return folder


@pytest.fixture(scope="module")
def folder(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pretrained(run / "checkpoints/model.safetensors", tmp_path_factory.mktemp("hub") / "my-cells")


def test_round_trip(run: Path, folder: Path) -> None:
    before, after = load_model(run / "checkpoints/model.safetensors"), from_pretrained(folder)
    assert not after.training
    assert after.class_names == before.class_names
    assert after.thresholds is not None
    assert before.thresholds is not None
    assert after.thresholds.reach(Wish("lrp")).values == before.thresholds.reach(Wish("lrp")).values
    assert all(torch.equal(before.state_dict()[name], tensor) for name, tensor in after.state_dict().items())
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    of_report = {"report/thresholds.json", "report/calibration.json"}
    assert names == {"model.safetensors", "recipe.json", "README.md"} | of_report
    assert (
        Recipe.from_dict(json.loads((folder / "recipe.json").read_text()))
        == read_checkpoint(folder / "model.safetensors").recipe
    )
    assert ranksort.from_pretrained is from_pretrained


def test_the_card_has_the_numbers_and_their_data(run: Path, folder: Path) -> None:
    card = (folder / "README.md").read_text()
    summary = json.loads((run / "report/report.json").read_text())["summary"]
    assert f"| {100 * summary['AP']:.1f} | {100 * summary['AP50']:.1f} |" in card
    assert f"| {100 * summary['oLRP']:.1f} |" in card
    assert "- evaluated on: val.json, 4 images" in card
    assert 'from_pretrained("my-cells")' in card
    head = card.split("---")[1]
    assert "pipeline_tag: object-detection" in head
    objects = json.loads((run / "report/report.json").read_text())["per_class"][0]
    assert f"| {objects['class']} | {objects['objects']} |" in card


def test_paths_stay_at_home(folder: Path) -> None:
    assert [path for path in folder.rglob("*") if path.is_file() and b"secret/" in path.read_bytes()] == []
    assert [path for path in folder.rglob("*") if path.is_file() and b"/home/me" in path.read_bytes()] == []
    assert _without_folders("detector", "atss, timm/x") == "atss, timm/x"
    assert _without_folders("evaluated on", "one fifth of a/b c/d.json, which is") == "one fifth of d.json, which is"


def test_other_reports_and_none(run: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "alone.safetensors"
    checkpoint.write_bytes((run / "checkpoints/model.safetensors").read_bytes())
    alone = save_pretrained(checkpoint, tmp_path / "alone")
    assert "Not measured." in (alone / "README.md").read_text()
    assert from_pretrained(alone).thresholds is None
    other = save_pretrained(checkpoint, tmp_path / "other", report=run / "report")
    assert "4 images" in (other / "README.md").read_text()
    with pytest.raises(FileNotFoundError, match=r"ranksort test CHECKPOINT --out"):
        save_pretrained(checkpoint, tmp_path / "third", report=tmp_path)
    assert not (tmp_path / "third").exists()
    with pytest.raises(ValueError, match="is not empty"):
        save_pretrained(checkpoint, alone)
    (tmp_path / "report").mkdir()
    (tmp_path / "report/report.json").write_text("[]")
    with pytest.raises(ValueError, match=r"report\.json is damaged"):
        save_pretrained(checkpoint, tmp_path / "third", report=tmp_path / "report")


class _Trap:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


def test_a_damaged_best_checkpoint_is_mentioned(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = read_checkpoint(run / "checkpoints/model.safetensors")
    weights = {f"model.{name}": tensor for name, tensor in model.state_dict.items()}
    content = {"ranksort": metadata(model.recipe, model.categories), "state_dict": weights}
    save_checkpoint(content, tmp_path / "checkpoints/last.ckpt")
    (tmp_path / "checkpoints/best.ckpt").write_bytes(b"damaged")
    with pytest.warns(UserWarning, match=r"best\.ckpt .* saving .*last\.ckpt"):
        save_pretrained(tmp_path, tmp_path / "shared")
    cli.main(["convert", str(tmp_path), "--out", str(tmp_path / "last.safetensors")])
    assert f"converting {tmp_path / 'checkpoints/last.ckpt'}" in capsys.readouterr().out


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    for name in ("model.safetensors", "pytorch_model.bin", "checkpoints/best.ckpt"):
        folder = tmp_path / name.replace("/", "_")
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(pickle.dumps(_Trap(tmp_path / "sprung")))
        with pytest.raises((ValueError, FileNotFoundError)) as raised:
            from_pretrained(folder)
        assert "model.safetensors" in str(raised.value)
    assert not (tmp_path / "sprung").exists()


def test_where_there_is_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match='not "user/name"'):
        from_pretrained(tmp_path / "gone")
    pytest.importorskip("huggingface_hub")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="me/nothing is neither a folder nor available on the Hugging Face Hub"):
        from_pretrained("me/nothing")


def test_torch_hub(folder: Path) -> None:
    if not (ROOT / "hubconf.py").is_file():
        pytest.skip("hubconf.py is part of a checkout")
    model = torch.hub.load(str(ROOT), "from_pretrained", str(folder), source="local")
    assert model.class_names == from_pretrained(folder).class_names
    new = torch.hub.load(
        str(ROOT), "create_model", "ranksort_atss_r50_fpn_1x_coco", source="local", num_classes=2, backbone="resnet18"
    )
    assert new.num_classes == 2
