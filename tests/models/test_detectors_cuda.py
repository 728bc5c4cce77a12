"""The detectors on a GPU: a training step and detections of the published models, as recorded and as on a CPU."""

import dataclasses
from typing import NamedTuple

import pytest
import torch
from published import (
    assert_same_detections,
    assert_same_gradients,
    golden_input,
    golden_json,
    published_names,
    published_state_dict,
)
from torch import Tensor

from ranksort.models import Detector
from ranksort.models.images import ImageBatch
from ranksort.published import convert_checkpoint
from ranksort.recipes import create_model

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU that torch can use"),
]


class Case(NamedTuple):
    folder: str
    recipe: str
    options: dict[str, float]
    input: dict[str, object]


YOLACT_INPUT = {"name": "input_yolact.npz", "mean": (123.68, 116.78, 103.94), "std": (58.40, 57.12, 57.38)}
CASES = [
    Case("atss_r50", "ranksort_atss_r50_fpn_1x_coco", {"min_size": 256}, {}),
    Case("paa_r50", "ranksort_paa_r50_fpn_1x_coco", {"min_size": 256}, {}),
    Case("faster_rcnn_r50", "ranksort_faster_rcnn_r50_fpn_1x_coco", {"min_size": 256, "score_threshold": 0.05}, {}),
    Case(
        "faster_rcnn_carafe_dcn_r101",
        "ranksort_faster_rcnn+_r101_fpn_mstrain_dcn_3x_coco",
        {"min_size": 256, "score_threshold": 0.05},
        {},
    ),
    Case("cascade_rcnn_r50", "ranksort_cascade_rcnn_r50_fpn_1x_coco", {"min_size": 256, "score_threshold": 0.02}, {}),
    Case("mask_rcnn_r50", "ranksort_mask_rcnn_r50_fpn_1x_coco", {"min_size": 256, "score_threshold": 0.05}, {}),
    Case("yolact_r50", "ranksort_yolact_r50_55e_coco", {}, YOLACT_INPUT),
    Case("solov2_light_r34", "ranksort_solov2_light_448_r34_fpn_3x", {"min_size": 256, "score_threshold": 0.1}, {}),
]


@pytest.fixture
def full_float32():
    """Without TensorFloat-32, which the convolutions take by default."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def published_model(case: Case) -> Detector:
    model = create_model(case.recipe, **case.options)
    model.load_state_dict(convert_checkpoint(published_state_dict(case.recipe), case.recipe))
    return model


def inputs(case: Case, device: str) -> tuple[ImageBatch, list[dict[str, Tensor]]]:
    given = golden_input(**case.input)
    batch = dataclasses.replace(given.batch, pixels=given.batch.pixels.to(device))
    return batch, [{key: value.to(device) for key, value in target.items()} for target in given.targets]


def step(model: Detector, batch: ImageBatch, targets: list[dict[str, Tensor]]) -> dict[str, float]:
    found = model.train().losses(batch, targets)
    sum(found.losses.values()).backward()
    return {name: loss.item() for name, loss in found.losses.items()}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.folder)
@pytest.mark.usefixtures("full_float32")
def test_a_step_and_detections_are_as_recorded(case: Case):
    model = published_model(case)
    expected = step(model, *inputs(case, "cpu"))
    norms = {name: p.grad.norm().item() for name, p in model.named_parameters() if p.grad is not None}
    model = published_model(case).cuda()
    batch, targets = inputs(case, "cuda")
    found = step(model, batch, targets)
    # Of anchors which are equally far from an object, ATSS' topk takes others on a GPU, which changes a positive here.
    ties = case.folder == "atss_r50"
    assert found == pytest.approx(expected, rel=0.03 if ties else 1e-3)
    ours = {name: p.grad.norm().item() for name, p in model.named_parameters() if p.grad is not None}
    assert ties or ours == pytest.approx(norms, rel=1e-2, abs=1e-7)
    if case.folder != "solov2_light_r34":  # recorded are the gradients of a bug of the published code
        if not ties:
            assert_same_gradients(model, case.folder, published_names(case.recipe))
        model = published_model(case).cuda()  # the step has changed the statistics of YOLACT's batch norms
        with torch.inference_mode():
            detections = model.eval().detect(batch)
        on_cpu = [{key: value.cpu() for key, value in d.items()} for d in detections]
        assert_same_detections(on_cpu, case.folder, "rescale_False", swaps=4)
    else:
        assert found["ranking"] == pytest.approx(
            golden_json(f"models/{case.folder}/train.json")["aligned"]["loss_rank"], rel=1e-3
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.folder)
def test_mixed_precision_is_close(case: Case, dtype: torch.dtype):
    model = published_model(case).cuda()
    expected = step(model, *inputs(case, "cuda"))
    model = published_model(case).cuda()
    with torch.autocast("cuda", dtype):
        found = step(model, *inputs(case, "cuda"))
        with torch.inference_mode():
            detections = model.eval().detect(inputs(case, "cuda")[0])
    assert found == pytest.approx(expected, rel=0.1, abs=0.01)
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)
    assert all(bool(d["scores"].isfinite().all()) for d in detections)
