"""Small images with objects, and what has to hold for the losses and detections of any detector."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torchvision.ops import clip_boxes_to_image

from ranksort.models import Detector

Sample = tuple[Tensor, dict[str, Tensor]]
Batch = tuple[list[Tensor], list[dict[str, Tensor]]]


def sample(height: int, width: int, objects: list[list[float]]) -> Sample:
    """A noisy dark image with a bright rectangle for each (x1, y1, x2, y2, label), cut by the border, in the channel of its label."""
    image = torch.rand(3, height, width) * 0.2
    masks = torch.zeros(len(objects), height, width, dtype=torch.bool)
    given = torch.tensor(objects, dtype=torch.float32).reshape(-1, 5)
    boxes, labels = clip_boxes_to_image(given[:, :4], (height, width)), given[:, 4].long()
    for mask, (x1, y1, x2, y2), label in zip(masks, boxes.int().tolist(), labels, strict=True):
        mask[y1:y2, x1:x2] = True
        image[label, mask] = 0.9
    return image, {"boxes": boxes, "labels": labels, "masks": masks}


def batch(*samples: Sample) -> Batch:
    return [image for image, _ in samples], [target for _, target in samples]


def two_images() -> Batch:
    return batch(sample(96, 128, [[10, 10, 60, 50, 0], [70, 30, 110, 90, 1]]), sample(120, 96, [[20, 30, 80, 100, 2]]))


def losses_and_gradients(model: nn.Module, images: list[Tensor], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The losses; checks that they and the gradients which they give to everything trained are finite."""
    losses = model.train()(images, targets)
    assert all(x.ndim == 0 and bool(x.isfinite()) for x in losses.values())
    model.zero_grad()
    sum(losses.values()).backward()
    for name, p in model.named_parameters():
        assert (p.grad is not None) == p.requires_grad, name
        assert p.grad is None or bool(p.grad.isfinite().all()), name
    return losses


def positives(model: Detector, images: list[Tensor], targets: list[dict[str, Tensor]]) -> int:
    """How many anchors, proposals or cells have to find an object."""
    with torch.no_grad():
        return len(model.train()(images, targets, with_quality=True).quality)


def fit(
    model: nn.Module,
    images: list[Tensor],
    targets: list[dict[str, Tensor]],
    optimizer: torch.optim.Optimizer,
    steps: int,
) -> list[float]:
    """Trains on one batch; the sums of the losses. The learning rate falls to 0: the end shall not hang on rounding."""
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    history = []
    for _ in range(steps):
        losses = model.train()(images, targets)
        total = sum(losses.values())
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10)
        optimizer.step()
        schedule.step()
        history.append(total.item())
    return history


def detections_of(model: nn.Module, images: list[Tensor]) -> list[dict[str, Tensor]]:
    """The detections in evaluation mode; checks what holds for any."""
    with torch.no_grad():
        detections = model.eval()(images)
    assert len(detections) == len(images)
    for image, d in zip(images, detections, strict=True):
        assert d["boxes"].shape == (len(d["scores"]), 4)
        assert len(d["scores"]) <= model.detections_per_image
        assert bool((d["scores"] > model.score_threshold).all())
        assert bool((d["scores"] <= 1).all())
        assert bool((d["scores"].diff() <= 0).all())
        assert d["labels"].dtype == torch.int64
        assert bool(((d["labels"] >= 0) & (d["labels"] < model.num_classes)).all())
        height, width = image.shape[-2:]
        assert bool((d["boxes"][:, :2] >= 0).all())
        assert bool((d["boxes"][:, 2:] <= torch.tensor([width, height]) + 1e-3).all())
        if "masks" in d:
            assert d["masks"].dtype == torch.bool
            assert d["masks"].shape == (len(d["scores"]), height, width)
    return detections


def peak_bytes(function: Callable[[], object]) -> int:
    """The most that `function` has allocated at a time."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        function()
    events = recorded.profiler.kineto_results.events()
    return int(torch.tensor([event.nbytes() for event in events if event.name() == "[memory]"]).cumsum(0).max())
