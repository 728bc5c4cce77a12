"""Results in other people's tools, by the lines of docs/elsewhere.md."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from colour_detector import Colours, paint

from ranksort.prediction import Prediction

PAGE = Path(__file__).parents[2] / "docs/elsewhere.md"


@pytest.fixture(params=[True, False], ids=["three objects", "none"])
def prediction(request: pytest.FixtureRequest, colours: Colours) -> Prediction:
    colours.class_names = ("dog", "cat", "cow")
    image = torch.zeros(3, 40, 60, dtype=torch.uint8)
    for place, number in enumerate((1, 2, 4) if request.param else ()):
        paint(image, (6 * place, 2, 6 * place + 5, 8), number)
    found = colours.predict(image)
    assert isinstance(found, Prediction)
    return found


def _code(start: str) -> str:
    """The code on the page that has a line with this beginning."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return next(block for block in blocks if f"\n{start}" in block)


@pytest.mark.parametrize("with_masks", [True, False])
def test_supervision(prediction: Prediction, with_masks: bool) -> None:
    sv = pytest.importorskip("supervision", reason="supervision is not installed: pip install supervision")
    prediction.rles = prediction.rles if with_masks else None
    names = {"sv": sv, "np": np, "prediction": prediction}
    exec(_code("detections = "), names)
    detections = names["detections"]
    assert np.array_equal(detections.xyxy, prediction.boxes)
    assert np.array_equal(detections.confidence, prediction.scores)
    assert list(detections["class_name"]) == prediction.names
    assert (detections.mask is None) == (not with_masks)
    assert len(detections[detections.confidence > 2]) == 0
    assert prediction.image is None or sv.BoxAnnotator().annotate(
        np.zeros((40, 60, 3), np.uint8), detections
    ).shape == (40, 60, 3)
    if with_masks and len(prediction):
        assert detections.area.tolist() == [30, 30, 30]


def test_fiftyone(prediction: Prediction) -> None:
    fo = pytest.importorskip("fiftyone", reason="fiftyone is not installed: pip install fiftyone")
    sample: dict[str, Any] = {}
    exec(_code('sample["ranksort"] = '), {"fo": fo, "prediction": prediction, "sample": sample})
    labels = sample["ranksort"].detections
    assert [label.label for label in labels] == prediction.names
    assert [label.confidence for label in labels] == pytest.approx(prediction.scores.tolist())
    if labels:
        assert labels[1].bounding_box == pytest.approx([6 / 60, 2 / 40, 5 / 60, 6 / 40])
