"""Exported detectors find what PyTorch finds, on images of any size, and run where PyTorch is not."""

# ruff: noqa: E402  # what is skipped where the packages are missing is imported after that

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

onnxruntime = pytest.importorskip(
    "onnxruntime", reason="exports are not tested without onnx, onnxruntime and onnxscript"
)
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")

from ranksort import cli
from ranksort.checkpoints import load_model, read_checkpoint, save_model
from ranksort.data.coco_columns import Category
from ranksort.evaluation.calibration import Calibrator, Curve
from ranksort.evaluation.calibration_file import save_calibrator
from ranksort.evaluation.model_scores import ModelCalibration, ModelThresholds
from ranksort.evaluation.thresholds import read_thresholds
from ranksort.export import export_onnx
from ranksort.export.operators import suppress
from ranksort.export.verification import _run, _unmatched, drawn_images
from ranksort.exported import Found, OnnxDetector
from ranksort.exported.command import predict_exported
from ranksort.exported.folder import ResultFolder, encode_mask
from ranksort.models import Detector
from ranksort.models.postprocess import non_maximum_suppression
from ranksort.recipes import get_recipe

RUNTIME = tuple(map(int, onnxruntime.__version__.split(".")[:2]))
NAMES = ("Bär", '犬 "quoted"\n')


def checkpoint(folder: Path, detector: str, **settings: Any) -> Path:
    """A small detector of random weights, which are the same in every call."""
    from ranksort.recipes import create_model

    recipe = get_recipe("ranksort_atss_r50_fpn_1x_coco")
    recipe.model.detector, recipe.model.backbone = detector, "resnet18"
    recipe.model.channels, recipe.model.head_convs, recipe.model.proposals = 64, 1, 30
    recipe.model.min_size, recipe.model.max_size, recipe.model.score_threshold = 96, 160, 0.005
    recipe.model.detections_per_image = 20
    for name, value in settings.items():
        setattr(recipe.model, name, value)
    torch.manual_seed(0)
    path = folder / f"{detector}.safetensors"
    save_model(path, create_model(recipe, num_classes=2), recipe, [Category(7, NAMES[0]), Category(9, NAMES[1])])
    return path


@pytest.fixture(scope="module")
def paa(tmp_path_factory: pytest.TempPathFactory) -> tuple[Detector, Path]:
    """A detector, the paddings of whose backbone depend on the size of the image, and its export, made by the command line."""
    folder = tmp_path_factory.mktemp("paa")
    file = checkpoint(folder, "paa", backbone="timm/tf_efficientnet_lite0")
    cli.main(["export", str(file), "--out", str(folder / "model.onnx")])
    return load_model(file), folder / "model.onnx"


def assert_same(model: Detector, exported: OnnxDetector, image: np.ndarray, threshold: float) -> Found:
    ours, theirs = _run(model, image, threshold), exported(image, threshold)
    assert len(ours) == len(theirs)
    assert (theirs.boxes.dtype, theirs.scores.dtype, theirs.labels.dtype) == (np.float32, np.float32, np.int64)
    if model.has_masks:
        assert theirs.masks is not None
        assert theirs.masks.shape == (len(theirs), *image.shape[:2])
    for a, b in ((ours, theirs), (theirs, ours)):
        assert _unmatched(a, b, model.detections_per_image)[0] == 0
    return theirs


@pytest.mark.parametrize(
    ("detector", "settings"),
    [
        pytest.param("atss", {}, marks=pytest.mark.slow),  # as PAA but for its score voting
        pytest.param("faster_rcnn", {"upsampling": "carafe"}, marks=pytest.mark.slow),
        pytest.param("cascade_rcnn", {}, marks=pytest.mark.slow),
        ("mask_rcnn", {"deformable_convs": RUNTIME >= (1, 32)}),  # earlier ones may lack them
        ("yolact", {"backbone": "timm/test_resnet", "min_size": 96, "max_size": 96}),
        ("solov2_light", {"prior": 0.3, "score_threshold": 0.2}),
    ],
)
def test_every_detector(detector: str, settings: dict[str, Any], tmp_path: Path) -> None:
    """On three sizes, where there is nothing to be found, and on images smaller than a cell of the network."""
    model = load_model(checkpoint(tmp_path, detector, **settings))
    found = export_onnx(model, tmp_path / "model.onnx")
    assert found is not None
    assert found.images == 3
    assert found.detections > 10
    assert found.missing == 0
    exported = OnnxDetector(tmp_path / "model.onnx", threads=1)
    photo = drawn_images([(90, 120)])[0]
    assert len(assert_same(model, exported, photo, 1.0)) == 0
    for shape in ((1, 1, 3), (2, 300, 3)):
        exported(np.full(shape, 120, np.uint8))  # all cells are equal, so that ties decide: it only has to run


def test_sizes_thresholds_and_metadata(paa: tuple[Detector, Path]) -> None:
    model, path = paa
    exported = OnnxDetector(path, threads=1)
    for height, width in ((30, 500), (333, 64), (96, 96), (97, 160), (640, 480)):
        image = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
        assert len(assert_same(model, exported, image, 0.0)) == 20
        assert_same(model, exported, image, model.score_threshold)
    assert len(assert_same(model, exported, image, 1.0)) == 0
    for shape in ((1, 1, 3), (2, 300, 3)):
        exported(np.full(shape, 120, np.uint8))  # as above
    session = onnxruntime.InferenceSession(path)
    assert [(x.name, x.type, x.shape) for x in session.get_inputs()] == [
        ("image", "tensor(uint8)", ["image_height", "image_width", 3])
    ]
    assert [x.name for x in session.get_overridable_initializers()] == ["score_threshold"]
    assert [(x.name, x.shape) for x in session.get_outputs()] == [
        ("boxes", ["detections", 4]),
        ("scores", ["detections"]),
        ("labels", ["detections"]),
    ]
    about = json.loads(session.get_modelmeta().custom_metadata_map["ranksort"])
    assert about["categories"] == [{"id": 7, "name": NAMES[0]}, {"id": 9, "name": NAMES[1]}]
    assert (about["detector"], about["score_threshold"], about["masks"]) == ("PAA", 0.005, False)
    assert about["preprocessing"]["mean"] == pytest.approx([127.5] * 3)
    assert (about["calibrations"], about["lrp_thresholds"]) == ({}, None)
    onnx.checker.check_model(onnx.load(path), full_check=True)


def test_what_is_there_is_not_lost(paa: tuple[Detector, Path], capsys: pytest.CaptureFixture[str]) -> None:
    _, path = paa
    before = path.read_bytes()
    for out, said in ((path, "already exists"), (path.with_suffix(".pt"), "must name an .onnx file")):
        with pytest.raises(SystemExit, match="2"):
            cli.main(["export", str(path.parent / "paa.safetensors"), "--out", str(out)])
        assert said in capsys.readouterr().err
    assert path.read_bytes() == before
    assert sorted(file.name for file in path.parent.iterdir()) == ["model.onnx", "paa.safetensors"]


def use_graph(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Export the graph of an exported file again, since tracing a network takes ten seconds."""
    content = onnx.load(path)
    monkeypatch.setattr("ranksort.export.onnx_file._with_preprocessing", lambda *_: content)
    monkeypatch.setattr("ranksort.export.onnx_file._network", lambda _: None)


def test_differences_are_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, paa: tuple[Detector, Path]) -> None:
    use_graph(paa[1], monkeypatch)
    other = load_model(checkpoint(tmp_path, "paa", backbone="timm/tf_efficientnet_lite0"))
    torch.nn.init.normal_(other.head.class_logits.bias)
    with pytest.raises(ValueError, match=r"is not written: \d+ of \d+ detections in 3 images differ"):
        export_onnx(other, tmp_path / "other.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["paa.safetensors"]


ALONE = """
import sys
for name in {missing!r}:
    sys.modules[name] = None  # importing it fails
from ranksort import cli
cli.main(sys.argv[1:])
"""


@pytest.mark.parametrize(
    "missing", [["torch"], ["torch", "torchvision", "tyro", "msgspec", "pycocotools", "rich", "matplotlib"]]
)
def test_predicts_without_torch(paa: tuple[Detector, Path], tmp_path: Path, missing: list[str]) -> None:
    _, path = paa
    (tmp_path / "images").mkdir()
    for n, image in enumerate(drawn_images()):
        Image.fromarray(image).save(tmp_path / "images" / f"{n}.png")
    (tmp_path / "images" / "3.jpg").write_bytes(b"no image")
    arguments = [str(path), str(tmp_path / "images"), "--out", str(tmp_path / "alone"), "--score-threshold", "0"]
    command = [sys.executable, "-c", ALONE.format(missing=missing), "predict", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ)
    assert done.returncode == 2
    assert done.stderr.startswith("ranksort: 1 of 4 images could not be read")
    assert "3 images, 60 detections" in done.stdout
    arguments = [str(path.parent / "paa.safetensors"), *arguments[1:3], str(tmp_path / "torch"), *arguments[4:]]
    with pytest.raises(SystemExit, match="2"):
        cli.main(["predict", *arguments])
    results = [json.loads((tmp_path / name / "results_bbox.json").read_text()) for name in ("alone", "torch")]
    assert len(results[0]) == len(results[1]) == 60
    best = [max((row["score"], row["category_id"], row["image_id"]) for row in rows) for rows in results]
    assert best[0] == pytest.approx(best[1], abs=1e-4)
    files = [sorted(file.name for file in (tmp_path / name).iterdir()) for name in ("alone", "torch")]
    assert files[0] == files[1]
    heads = [(tmp_path / name / "results.csv").read_text().splitlines()[0] for name in ("alone", "torch")]
    assert heads[0] == heads[1]


def test_no_name_and_no_error_costs_the_other_results(
    paa: tuple[Detector, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [tmp_path / name for name in ("a.png", "not_unicode_\udcff.png", "fails.png", "d.png")]
    for file in files:
        Image.fromarray(drawn_images()[2]).save(file)
    detector = OnnxDetector(paa[1], threads=1)
    run = detector.predict
    results = iter([run, run, None, run])

    def predict(*arguments: Any, **options: Any) -> Any:
        if (found := next(results)) is None:
            raise onnxruntime.capi.onnxruntime_pybind11_state.Fail("out of something")
        return found(*arguments, **options)

    monkeypatch.setattr(detector, "predict", predict)
    folder = ResultFolder(tmp_path / "out", detector, pictures=False)
    folder.predict(files, 0.0)
    assert folder.failures == [f"The image {files[2]} cannot be processed (out of something)."]
    with open(tmp_path / "out" / "results.csv", encoding="utf-8", newline="") as table:
        names = [row["file_name"] for row in csv.DictReader(table)]
    assert len(names) == folder.detections.total()
    assert str(tmp_path / r"not_unicode_\udcff.png") in names
    assert {row["image_id"] for row in json.loads((tmp_path / "out" / "results_bbox.json").read_text())} == {1, 2, 4}


def test_a_folder_without_images_is_not_compared_on(
    paa: tuple[Detector, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, out = paa[1].parent / "paa.safetensors", tmp_path / "model.onnx"
    with pytest.raises(SystemExit, match="2"):
        cli.main(["export", str(checkpoint), "--out", str(out), "--images", str(tmp_path)])
    assert f"there are no images in {tmp_path}" in capsys.readouterr().err
    assert not out.exists()


def test_which_scores_a_threshold_applies_to(
    paa: tuple[Detector, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, path = paa
    image = tmp_path / "a.png"
    Image.fromarray(drawn_images()[0]).save(image)
    categories = [Category(n, name) for n, name in enumerate(NAMES)]
    score = float(model.predict(image, score_threshold=0.0).scores[0])  # type: ignore[union-attr]
    content = {
        "default": score,
        "thresholds": [{"category_id": c.id, "class": c.name, "threshold": score} for c in categories],
    }
    curve = Curve(np.array([0.0, 1.0]), np.array([0.0, 0.5]))
    calibrator = Calibrator("iou", "linear", categories, np.full(2, 50), [curve, curve], curve)
    model.thresholds = ModelThresholds(read_thresholds(content, "report"), categories)
    use_graph(path, monkeypatch)
    try:
        given = ModelCalibration(calibrator, "some", categories)
        export_onnx(model, tmp_path / "a.onnx", categories, calibrations=[given], images=[])
    finally:
        model.thresholds = None
    detector = OnnxDetector(tmp_path / "a.onnx", threads=1)
    assert len(detector.predict(image)) >= 1  # the one at the threshold, too, though its last digits differ
    for n, (threshold, said) in enumerate(((str(score / 4), "or more\n"), ("lrp", "or more, before calibration\n"))):
        arguments = ["--score-threshold", threshold, "--scores", "calibrated", "--out", str(tmp_path / f"out{n}")]
        predict_exported([str(tmp_path / "a.onnx"), str(image), *arguments])
        assert said in capsys.readouterr().out
    with pytest.raises(
        ValueError, match=r"an ONNX file does not take --tile --every, only --out, .*: predict with the che"
    ):
        predict_exported([str(tmp_path / "a.onnx"), str(image), "--out", "x", "--tile", "640", "--every=2"])
    with pytest.raises(
        ValueError, match=r'or "lrp", got recall:\.8: predict with the run folder for a precision or recall'
    ):
        detector.predict(image, "recall:.8")


def test_thresholds_of_a_calibration_file(
    paa: tuple[Detector, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    categories = [Category(7, NAMES[0]), Category(9, NAMES[1])]
    curve = Curve(np.array([0.0, 1.0]), np.array([0.0, 0.5]))
    file, out = tmp_path / "calibration.json", tmp_path / "model.onnx"
    thresholds = {
        "default": 0.5,
        "thresholds": [{"category_id": c.id, "class": c.name, "threshold": 0.25} for c in categories],
    }
    calibrator = Calibrator("iou", "linear", categories, np.full(2, 50), [curve, curve], curve)
    save_calibrator(calibrator, file, thresholds=thresholds)
    use_graph(paa[1], monkeypatch)
    given = ["--out", str(out), "--no-verify", "--calibration", str(file)]
    cli.main(["export", str(paa[1].parent / "paa.safetensors"), *given])
    assert OnnxDetector(out, threads=1).thresholds() == pytest.approx([0.25, 0.25], abs=1e-4)  # as with `predict`


def test_images_to_compare_on_are_read_as_for_the_model(
    paa: tuple[Detector, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = read_checkpoint(paa[1].parent / "paa.safetensors")
    trained.recipe.data.white = 4095
    save_model(tmp_path / "deep.safetensors", trained.build(), trained.recipe, trained.categories)
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a.mp4").touch()  # videos are passed over
    Image.fromarray(np.full((20, 30), 3000, np.uint16)).save(folder / "b.png")
    use_graph(paa[1], monkeypatch)
    compared: list[np.ndarray] = []
    monkeypatch.setattr("ranksort.export.onnx_file.verify", lambda model, file, images: compared.extend(images))
    given = ["--out", str(tmp_path / "deep.onnx"), "--images", str(folder)]
    cli.main(["export", str(tmp_path / "deep.safetensors"), *given])
    assert [image.tolist() for image in compared] == [np.full((20, 30, 3), 3000 * 255 // 4095).tolist()]


def test_a_calibrated_score_reaches_itself_as_a_threshold() -> None:
    detector = object.__new__(OnnxDetector)  # calibrated scores have more digits than float32
    curve = {"scores": [0.0, 1.0], "values": [0.0, 0.3]}
    detector.about = {
        "lrp_thresholds": None,
        "score_threshold": 0.05,
        "preprocessing": {"white": 0},
        "calibrations": {"iou": [curve]},
    }
    detector.class_names, detector._outputs = ("a",), ["boxes", "scores", "labels"]
    found = np.zeros((9, 4), np.float32), np.linspace(0.9, 0.1, 9, dtype=np.float32), np.zeros(9, np.int64)
    detector._session = SimpleNamespace(run=lambda *_: found)
    image = np.zeros((5, 5, 3), np.uint8)
    scores = detector.predict(image, 0, scores="calibrated").scores
    kept = [len(detector.predict(image, float(score), scores="calibrated")) for score in scores]
    assert kept == list(range(1, 10))
    assert len(detector.predict(image, 0.7)) == 3  # float32's .7 is lower than Python's


def test_images_that_are_none(paa: tuple[Detector, Path], tmp_path: Path) -> None:
    _, path = paa
    exported = OnnxDetector(path, threads=1)
    for image in (np.zeros((5, 5, 3), np.int64), np.zeros((3, 5, 5), np.uint8), np.zeros((0, 5, 3), np.uint8)):
        with pytest.raises(ValueError, match="uint8 RGB of shape"):
            exported(image)
    with pytest.raises(ValueError, match="without a calibration"):
        exported.predict(drawn_images()[0], scores="calibrated")
    (tmp_path / "bad.onnx").write_bytes(b"\0" * 100)
    with pytest.raises(ValueError, match="cannot be read as an ONNX model"):
        OnnxDetector(tmp_path / "bad.onnx")


def test_suppression_of_all_pairs() -> None:
    """Also with ties, for which the order of regions decides."""
    generator = torch.Generator().manual_seed(0)
    for per_class in (False, True):
        corner = torch.rand(300, *([3] if per_class else []), 2, generator=generator) * 50
        boxes = torch.cat([corner, corner + 5 + 20 * torch.rand(corner.shape, generator=generator)], -1)
        scores = (torch.rand(300, 3, generator=generator) * 20).round() / 20
        settings = {"nms_threshold": 0.5, "detections_per_image": 40}
        ours = suppress(boxes, scores, score_threshold=torch.tensor(0.3), **settings)
        theirs = non_maximum_suppression(boxes, scores, score_threshold=0.3, **settings)
        assert all(torch.equal(ours[name], theirs[name]) for name in ("boxes", "scores", "labels"))


def test_masks_as_text() -> None:
    rng = np.random.default_rng(0)
    for shape in ((1, 1), (7, 5), (40, 300)):
        for share in (0.0, 0.02, 0.5, 1.0):
            mask = rng.random(shape) < share
            expected = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
            assert encode_mask(mask) == {"size": list(shape), "counts": expected["counts"].decode()}
