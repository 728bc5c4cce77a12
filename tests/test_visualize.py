import torch

from ranksort.visualize import draw_detections

DETECTIONS = {
    "boxes": torch.tensor([[10.0, 30, 40, 60], [50, 30, 80, 60]]),
    "labels": torch.tensor([0, 1]),
    "scores": torch.tensor([0.9, 0.1]),
    "masks": torch.zeros(2, 80, 100, dtype=torch.bool),
}
DETECTIONS["masks"][0, 40:50, 20:30] = True
DETECTIONS["masks"][1, 40:50, 60:70] = True


def test_masks_are_drawn_with_their_boxes() -> None:
    image = torch.full((3, 80, 100), 40, dtype=torch.uint8)
    drawn = draw_detections(image, DETECTIONS, ["a", "b"])
    assert drawn.shape == image.shape
    assert bool((image == 40).all())
    changed = (drawn != image).any(0)
    assert bool(changed[42:48, 22:28].all())
    assert not changed[52:58, 13:38].any()  # inside the box, outside the mask
    assert not changed[25:65, 45:].any()  # its score is too low
    everything = draw_detections(image, DETECTIONS, ["a", "b"], score_threshold=0.0)
    assert bool((everything != image).any(0)[42:48, 62:68].all())


def test_nothing_to_draw() -> None:
    image = torch.full((3, 80, 100), 40, dtype=torch.uint8)
    assert torch.equal(draw_detections(image, DETECTIONS, ["a", "b"], score_threshold=0.95), image)
    truth = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long(), "masks": torch.zeros(0, 80, 100)}
    assert torch.equal(draw_detections(image, truth, []), image)
