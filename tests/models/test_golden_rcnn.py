"""Our R-CNNs against the published ones: losses, gradients, feature maps, proposals, detections and masks, on two real images."""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from published import (
    GoldenInput,
    assert_same_detections,
    assert_same_gradients,
    assert_same_levels,
    assert_same_map,
    golden_file,
    golden_input,
    golden_json,
    published_entries,
    published_names,
    published_state_dict,
)
from pycocotools import mask as coco_mask
from torch import Tensor
from torchvision.ops import box_iou

from ranksort.losses.detection import DetectionLosses
from ranksort.models import CascadeRCNN, FasterRCNN, MaskRCNN
from ranksort.models.anchors import AnchorPredictions
from ranksort.models.roi_heads import pool_regions
from ranksort.published import convert_checkpoint
from ranksort.recipes import create_model, list_recipes

FOLDERS = {  # the score threshold is the recorded one
    "faster_rcnn_r50": ("ranksort_faster_rcnn_r50_fpn_1x_coco", 0.05),
    "faster_rcnn_carafe_r50": ("ranksort_faster_rcnn+_r50_fpn_1x_coco", 0.05),
    "faster_rcnn_carafe_dcn_r101": ("ranksort_faster_rcnn+_r101_fpn_mstrain_dcn_3x_coco", 0.05),
    "cascade_rcnn_r50": ("ranksort_cascade_rcnn_r50_fpn_1x_coco", 0.02),
    "mask_rcnn_r50": ("ranksort_mask_rcnn_r50_fpn_1x_coco", 0.05),
}


class Case(NamedTuple):
    folder: str
    recipe: str
    input: GoldenInput
    model: FasterRCNN | CascadeRCNN | MaskRCNN
    found: DetectionLosses  # of one training step, whose gradients are in the model
    backbone: list[Tensor]
    neck: list[Tensor]
    anchors: AnchorPredictions
    detections: list[dict[str, Tensor]]


@pytest.fixture(scope="module", params=FOLDERS)
def case(request: pytest.FixtureRequest) -> Case:
    recipe, threshold = FOLDERS[request.param]
    given = golden_input()
    model = create_model(recipe, min_size=256, score_threshold=threshold)
    model.load_state_dict(convert_checkpoint(published_state_dict(recipe), recipe))
    found = model.train().losses(given.batch, given.targets)
    sum(found.losses.values()).backward()
    with torch.no_grad():
        backbone = model.eval().backbone(given.batch.pixels)
        neck = model.fpn(backbone)
        return Case(
            request.param, recipe, given, model, found, backbone, neck, model.rpn(neck), model.detect(given.batch)
        )


@pytest.mark.parametrize("recipe", [name for name in list_recipes() if "rcnn" in name and "small" not in name])
def test_every_published_tensor_has_one_of_ours(recipe: str) -> None:
    """`convert_checkpoint` itself refuses what is missing, left over or of another shape."""
    assert sorted(published_names(recipe).values()) == sorted(key for key, _, _ in published_entries(recipe))


def _recorded(case: Case) -> dict[str, np.ndarray]:
    with np.load(golden_file(f"models/{case.folder}/eval.npz")) as file:
        return {name: file[name] for name in file.files if not name.endswith(("first50", "strided50"))}


def test_losses(case: Case) -> None:
    parts = {"rank": "ranking", "sort": "sorting", "bbox": "box"}
    ours = {}
    for name in golden_json(f"models/{case.folder}/train.json")["losses"]:
        part = name.rpartition("_")[2]
        prefix = "rpn_" if "rpn" in name else f"stage{name[1]}_" if name.startswith("s") else ""
        ours[name] = case.found.losses[prefix + parts.get(part, part)].item()
    assert len(ours) == len(case.found.losses)
    assert ours == pytest.approx(golden_json(f"models/{case.folder}/train.json")["losses"], rel=1e-4)


def test_number_of_positives(case: Case) -> None:
    last = golden_json(f"models/{case.folder}/train.json")["ranksort_calls"][-1]
    assert len(case.found.quality) == last["positives"]  # here none of them has an IoU of exactly 0


def test_gradient_norm_of_every_trained_parameter(case: Case) -> None:
    """That of the mask loss and of the box loss as well, whose values say nothing: they are balanced."""
    assert_same_gradients(case.model, case.folder, published_names(case.recipe))


def test_feature_maps(case: Case) -> None:
    for name, maps in (("backbone", case.backbone), ("neck", case.neck)):
        for level, x in enumerate(maps):
            assert_same_map(x, case.folder, f"{name}/{level}")


def test_outputs_of_the_rpn(case: Case) -> None:
    for name, levels in (("cls", case.anchors.logits), ("reg", case.anchors.deltas)):
        assert_same_levels(levels, case.anchors.map_sizes, case.folder, f"rpn_head/{name}")


def test_proposals(case: Case) -> None:
    recorded = _recorded(case)
    stats = golden_json(f"models/{case.folder}/eval.json")["stats"]
    for i, ours in enumerate(case.model.rpn.proposals(case.anchors, case.input.batch.sizes)):
        expected = torch.tensor(recorded[f"proposals/{i}/top50"])[:, :4]
        torch.testing.assert_close(ours[:50], expected, rtol=0, atol=1e-2)
        assert len(ours) == stats[f"proposals/{i}"]["n"]
        assert ours.sum().item() == pytest.approx(stats[f"proposals/{i}"]["coord_sum"], rel=1e-5)


def test_heads_on_the_objects(case: Case) -> None:
    """Every box head, and the mask head, with the boxes of the objects as regions."""
    recorded = _recorded(case)
    regions = [target["boxes"] for target in case.input.targets]
    stages = (
        dict(enumerate(case.model.box_head)) if isinstance(case.model, CascadeRCNN) else {None: case.model.box_head}
    )
    with torch.no_grad():
        for stage, head in stages.items():
            name = "gt_rois" if stage is None else f"gt_rois/stage{stage}"
            logits, deltas = head(case.neck, regions)
            assert_same_map(pool_regions(case.neck, regions, 7), case.folder, f"{name}/roi_feats")
            torch.testing.assert_close(logits, torch.tensor(recorded[f"{name}/cls_score"]), rtol=0, atol=1e-3)
            torch.testing.assert_close(
                deltas.flatten(1), torch.tensor(recorded[f"{name}/bbox_pred"]), rtol=0, atol=1e-3
            )
        if isinstance(case.model, MaskRCNN):
            head, labels = case.model.mask_head, torch.cat([target["labels"] for target in case.input.targets])
            x = pool_regions(case.neck, regions, 14)
            for conv in head.convs:
                x = conv(x).relu()
            of_all_classes = head.logits(head.upsample(x).relu())
            assert_same_map(of_all_classes, case.folder, "gt_rois/mask_pred")
            own = head(case.neck, regions, labels)
            torch.testing.assert_close(own, of_all_classes[torch.arange(len(labels)), labels], rtol=1e-4, atol=1e-4)


def test_detections(case: Case) -> None:
    assert_same_detections(case.detections, case.folder, "rescale_False")
    ours = case.model.transform.to_original(case.detections, case.input.batch)
    assert_same_detections(ours, case.folder, "rescale_True")


def test_masks(case: Case) -> None:
    """Of what a user gets for plain images, in pixels of the resized images, and in those of the original ones."""
    if not isinstance(case.model, MaskRCNN):
        pytest.skip("has no masks")
    recorded, stats = _recorded(case), golden_json(f"models/{case.folder}/eval.json")["stats"]
    with torch.no_grad():
        resized = case.model(case.input.images)
        originals = case.model.to_original(case.detections, case.input.batch)
    for kind, detections in (("rescale_False", resized), ("rescale_True", originals)):
        for i, d in enumerate(detections):
            boxes = torch.tensor(recorded[f"{kind}/det_boxes_{i}"])
            same_label = d["labels"] == torch.tensor(recorded[f"{kind}/det_labels_{i}"])[:, None]
            iou, ours = (box_iou(boxes, d["boxes"]) * same_label).max(1)
            found = iou > 0.995
            areas = torch.tensor(recorded[f"{kind}/det_mask_areas_{i}"])
            assert int(found.sum()) >= 98
            assert int((d["masks"][ours].sum((1, 2)) - areas)[found].abs().max()) <= 2
            first = coco_mask.decode(stats[f"{kind}/image_{i}"]["mask_rle_top30"])
            different = d["masks"][ours[:30]] != torch.tensor(first).permute(2, 0, 1).bool()
            assert int(different.sum((1, 2))[found[:30]].max()) <= 2
