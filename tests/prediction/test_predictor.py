from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from colour_detector import Colours, paint
from PIL import Image
from torch import nn

from ranksort.data.coco_columns import Category
from ranksort.evaluation.calibration import Calibrator, Curve
from ranksort.evaluation.model_scores import ModelCalibration, ModelThresholds
from ranksort.evaluation.thresholds import read_thresholds
from ranksort.prediction import Prediction
from ranksort.prediction.predictor import Predictor


def picture(height: int, width: int, *numbers: int) -> torch.Tensor:
    """An image of objects beside each other, 5 px wide."""
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    for place, number in enumerate(numbers):
        paint(image, (6 * place, 2, 6 * place + 5, 8), number)
    return image


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{n}.png" for n in range(7)]
    for n, path in enumerate(paths):
        image = picture(*((10, 30) if n % 2 else (30, 12)), n + 1)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    return paths


def test_one_image_gives_one_result_and_several_a_list(colours: Colours, files: list[Path]) -> None:
    one = colours.predict(files[1])
    assert isinstance(one, Prediction)
    assert (one.path, one.size, one.names, one.labels.tolist()) == (files[1], (10, 30), ["2"], [2])
    assert one.boxes.tolist() == [[0, 2, 5, 8]]
    assert one.scores.tolist() == pytest.approx([0.88])
    for several in ([files[1]], (str(files[1]),), files[1].parent, str(files[1].parent / "1*.png")):
        found = colours.predict(several)
        assert isinstance(found, list)
        assert all(isinstance(f, Prediction) for f in found)
    found = colours.predict(files[0].parent)
    assert [f.path for f in found] == files  # type: ignore[union-attr]
    assert colours.predict([]) == []


def test_result(colours: Colours, files: list[Path], tmp_path: Path) -> None:
    colours.class_names = ("dog", "cat", "cow")
    image = picture(40, 60, 1, 2, 4)
    found = colours.predict(image)
    assert isinstance(found, Prediction)
    assert len(found) == 3
    assert repr(found) == "<Prediction 60x40: 2 cat, 1 cow>"
    assert repr(colours.predict(picture(9, 9))) == "<Prediction 9x9: nothing found>"
    assert found.masks is not None
    assert found.masks.shape == (3, 40, 60)
    drawn = np.asarray(found.plot())
    assert drawn.shape == (40, 60, 3)
    assert (drawn != image.permute(1, 2, 0).numpy()).any()
    found.save(tmp_path / "drawn.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "drawn.png")), drawn)
    of_file = colours.predict(files[1])
    assert isinstance(of_file, Prediction)
    assert of_file.image is None  # it is read again
    assert of_file.plot().size == (30, 10)
    files[1].unlink()
    with pytest.raises(FileNotFoundError, match=r"1\.png no longer exists"):
        of_file.plot()
    Image.new("RGB", (9, 9)).save(files[1])
    with pytest.raises(ValueError, match=r"1\.png has changed"):
        of_file.plot()
    with pytest.raises(ValueError, match=r"suffix of .*found\.xyz is not an image format"):
        found.save(tmp_path / "found.xyz")
    with pytest.raises(ValueError, match=r"suffix of .*found\.psd is not an image format that can be written"):
        found.save(tmp_path / "found.psd")  # which Pillow reads only


def test_model_stays_in_its_mode(colours: Colours) -> None:
    colours.backbone = nn.Sequential(nn.Identity(), nn.Identity()).train()
    colours.train().backbone[0].eval()
    colours.score_threshold = 0.4
    image = picture(20, 60, 1)
    found = colours.predict(image, score_threshold=0.1)
    assert len(found) == 1
    assert colours.score_threshold == 0.4
    assert [m.training for m in (colours, colours.backbone[0], colours.backbone[1])] == [True, False, True]


def thresholds_of(values: Sequence[float], true_positives: Sequence[int] = (1, 2)) -> ModelThresholds:
    """Those of labels 0, 1, ... for the lowest LRP error, and halves of them for a recall of .5."""
    points = {"objects": 2, "true_positives": [*true_positives], "detections": [1, 4]}
    rows = [
        {"category_id": n, "class": str(n), "threshold": x, "scores": [x, x / 2], **points}
        for n, x in enumerate(values)
    ]
    content = {"iou_type": "segm", "default": 0.5, "thresholds": rows}
    return ModelThresholds(read_thresholds(content, "report"), [Category(n, str(n)) for n in range(len(values))])


def test_thresholds_in_words(colours: Colours) -> None:
    colours.thresholds = thresholds_of([0.9, 0.2, 0.5])
    assert Predictor(colours).threshold_text().endswith("(the one that reaches oLRP): 0.200 to 0.900")
    colours.thresholds = thresholds_of([0.5, 0.5, 0.5])
    assert Predictor(colours).threshold_text().endswith("(the one that reaches oLRP): 0.500")
    assert Predictor(colours, 0.25).threshold_text() == "with a score of 0.25 or more"


def test_thresholds(colours: Colours) -> None:
    image = picture(20, 60, 3, 20, 61, 80)  # scores .87, .70, .29, .10 of labels 0, 2, 1, 2

    def scores(threshold: float | str | None = None) -> list[float]:
        found = colours.predict(image, score_threshold=threshold)
        assert isinstance(found, Prediction)
        return found.scores.round(2).tolist()

    assert scores() == pytest.approx([0.87, 0.7])
    assert scores(0.0) == pytest.approx([0.87, 0.7, 0.29, 0.1])
    for wish in ("lrp", "precision:.9"):
        with pytest.raises(ValueError, match=r"there is no report with thresholds .*score_threshold=.* needs"):
            scores(wish)
    colours.thresholds = thresholds_of([0.9, 0.2, 0.5])
    assert scores() == scores("lrp") == scores("precision:1") == pytest.approx([0.7, 0.29])
    assert scores("recall:1") == pytest.approx([0.87, 0.7, 0.29])
    colours.thresholds = thresholds_of([0.9, 0.2, 0.5], true_positives=(1, 1))
    with pytest.warns(UserWarning, match=r"recall:0\.8 is never reached in report for 0 \(at most 0\.500\), 1"):
        assert scores("recall:.8") == scores("lrp")
    for wrong in (-0.1, 1.1, float("nan"), "high", "precision:90"):
        with pytest.raises(ValueError, match=r"within 0\.\.1"):
            scores(wrong)


@pytest.mark.parametrize("threshold", ["lrp", "precision:1", "recall:.5"])
def test_the_detection_at_a_threshold_is_found_again(colours: Colours, threshold: str) -> None:
    image = picture(20, 60, 3, 20, 61, 80)
    score = colours.predict(image, score_threshold=0.8).scores.item()  # type: ignore[union-attr]
    # As from another batch size or device; .01 is not a rounding error.
    for measured, expected in ((score + 5e-6, [score]), (score + 0.01, [])):
        colours.thresholds = thresholds_of([measured, 0.99, 0.99])
        found = colours.predict(image, score_threshold=threshold)
        assert isinstance(found, Prediction)
        assert found.scores.tolist() == expected


def test_calibrated_scores(colours: Colours) -> None:
    image = picture(20, 60, 3, 20, 61, 80)  # scores .87, .70, .29, .10 of labels 0, 2, 1, 2
    categories = [Category(n, str(n)) for n in range(3)]
    tops = [0.1, 0.9, 0.5]
    curves: list[Curve | None] = [Curve(np.array([0.0, 1.0]), np.array([0.0, top])) for top in tops]
    calibrator = Calibrator("iou", "linear", categories, np.full(3, 50), curves, Curve(*np.zeros((2, 2))))
    colours.calibration = ModelCalibration(calibrator, "some", categories)

    found = colours.predict(image, score_threshold=0)
    assert isinstance(found, Prediction)
    assert found.scores.dtype == np.float64
    assert found.scores == pytest.approx([0.35, 0.261, 0.087, 0.05], abs=1e-6)
    assert found.labels.tolist() == [2, 1, 0, 2]
    assert found.masks is not None
    assert found.masks.any((1, 2)).all()
    number = colours.predict(image, score_threshold=0.1)  # of calibrated scores
    assert isinstance(number, Prediction)
    assert number.labels.tolist() == [2, 1]
    colours.thresholds = thresholds_of([np.float32(0.87).item(), 0.2, 0.5])  # of raw scores, one of them met exactly
    wished = colours.predict(image, score_threshold="lrp")
    assert isinstance(wished, Prediction)
    assert wished.labels.tolist() == [2, 1, 0]
    tiles = colours.predict(image, score_threshold=0, tile=32)
    assert isinstance(tiles, Prediction)
    assert tiles.scores == pytest.approx(found.scores)


@pytest.mark.parametrize("value", [255.0, -0.1, float("nan")])
def test_floats_outside_their_range_are_no_image(colours: Colours, value: float) -> None:
    with pytest.raises(ValueError, match=r"within 0\.\.1: divide values in 0\.\.255 by 255"):
        colours.predict(torch.full((3, 20, 20), value))


def test_batches_are_of_similar_shapes_and_results_in_order(colours: Colours, files: list[Path]) -> None:
    alone = [colours.predict(file) for file in files]
    colours.batches.clear()
    together = colours.predict(files, batch_size=4)
    assert colours.batches == [4, 3]
    for a, b in zip(alone, together, strict=True):  # type: ignore[arg-type]
        assert (a.path, a.labels.tolist(), a.boxes.tolist()) == (b.path, b.labels.tolist(), b.boxes.tolist())


def test_batches_that_do_not_fit_become_smaller(files: list[Path]) -> None:
    """Two images of at most 360 pixels fit, three do not; those after them come in twos at once."""
    model = Colours(most_pixels=2 * 360)
    found = model.predict(files * 2, batch_size=6)
    assert [f.path for f in found] == files * 2  # type: ignore[union-attr]
    assert model.batches[0] == 6
    assert model.batches.count(6) == 1
    assert max(model.batches[5:]) == 2
    with pytest.raises(torch.OutOfMemoryError):
        Colours(most_pixels=10).predict(files[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "the batch size must be a whole number, 1 or more, got 0"),
        ({"batch_size": "2"}, "the batch size must be a whole number, 1 or more, got '2'"),
        ({"tile": 0}, "tiles must have a whole number of pixels, 32 or more, got 0"),
        ({"tile": 64.5}, "tiles must have a whole number of pixels, 32 or more, got 64.5"),
        ({"tile": 64, "overlap": 1.0}, r"the overlap of tiles must be within 0\.\.0\.9, got 1\.0"),
    ],
)
def test_senseless_arguments(colours: Colours, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        colours.predict(picture(9, 9), **arguments)


def test_more_pixels_than_pillow_reads(colours: Colours, files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(
        ValueError, match=r"0\.png has more pixels than Pillow opens .*; `ranksort predict --tile` reads"
    ):
        colours.predict(files[0])


def test_videos_are_for_the_command_line(colours: Colours) -> None:
    with pytest.raises(ValueError, match=r"clip\.mp4 is a video: use `ranksort predict`"):
        colours.predict("clip.mp4")
