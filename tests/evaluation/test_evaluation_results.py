import json

import torch
from torch import Tensor

from ranksort.evaluation.results import decode_masks, encode_masks, to_coco_results


def _found(masks: Tensor) -> dict[str, Tensor]:
    boxes = torch.tensor([[1.0, 2, 4, 6], [0, 0, 5.5, 3]])[: len(masks)]
    return {
        "boxes": boxes,
        "scores": torch.tensor([0.9, 0.5])[: len(masks)],
        "labels": torch.tensor([1, 0])[: len(masks)],
    }


def test_results_with_and_without_masks() -> None:
    masks = torch.rand(2, 7, 9) > 0.5
    found = [_found(masks), _found(masks[:0])]
    results = to_coco_results(found, [17, 4], category_ids=[3, 8])
    assert [(r["image_id"], r["category_id"], r["bbox"]) for r in results] == [
        (17, 8, [1, 2, 3, 4]),
        (17, 3, [0, 0, 5.5, 3]),
    ]
    assert not any("segmentation" in r for r in results)
    with_masks = to_coco_results(
        [{**found[0], "masks": masks}, {**found[1], "masks": masks[:0]}], [17, 4], category_ids=[3, 8]
    )
    rles = [json.loads(json.dumps(r.pop("segmentation"))) for r in with_masks]
    assert with_masks == results
    assert torch.equal(decode_masks(rles, 7, 9), masks)


def test_no_masks() -> None:
    assert encode_masks(torch.zeros(0, 7, 9, dtype=torch.bool)) == []
    assert decode_masks([], 7, 9).shape == (0, 7, 9)
