"""A detector as a graph for `torch.export`."""

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..models import Detector
from ..models.images import ImageBatch
from .operators import suppress

INPUTS = ("pixels", "height", "width", "original_height", "original_width")  # of `OneImage`, besides the threshold


class OneImage(nn.Module):
    """A detector for one image, without data-dependent Python: for `torch.export` and, through it, ONNX.

    Args:
        model: the detector, in evaluation mode.
    """

    def __init__(self, model: Detector) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        pixels: Tensor,
        height: int,
        width: int,
        original_height: int,
        original_width: int,
        score_threshold: Tensor,
    ) -> dict[str, Tensor]:
        """Find the objects of an image.

        Args:
            pixels: the resized, normalised and padded image, in blocks, [1, 3, H / d, d, W / d, d], where d is the transform's divisor.
            height: of the resized image.
            width: of the resized image.
            original_height: of the image.
            original_width: of the image.
            score_threshold: as in `Detector`, [].
        """
        batch = ImageBatch(
            pixels.flatten(4, 5).flatten(2, 3),
            [(height, width)],
            [(original_height, original_width)],
            self.model.transform.divisor,
        )
        with _exportable(self.model, score_threshold):
            (found,) = self.model.to_original(self.model.detect(batch), batch)
        # In a fixed order, independent of the detector.
        return {name: found[name] for name in ("boxes", "scores", "labels", "masks") if name in found}


@contextlib.contextmanager
def _exportable(model: Detector, score_threshold: Tensor) -> Iterator[None]:
    own = model.score_threshold
    convs = [module for module in model.modules() if type(module).__name__ == "Conv2dSame"]
    model.score_threshold = score_threshold  # type: ignore[assignment]
    model.suppress = partial(  # type: ignore[method-assign]
        suppress,
        score_threshold=score_threshold,
        nms_threshold=model.nms_threshold,
        detections_per_image=model.detections_per_image,
    )
    for conv in convs:
        conv.forward = partial(_same_conv, conv)
    try:
        yield
    finally:
        model.score_threshold = own
        del model.suppress
        for conv in convs:
            del conv.forward


def _same_conv(conv: Any, x: Tensor) -> Tensor:
    """timm's `Conv2dSame` in integer arithmetic: its float division makes paddings symbolic expressions that grow with each layer."""
    pads: list[int] = []
    for n, kernel, stride, dilation in zip(
        x.shape[:1:-1], conv.kernel_size[::-1], conv.stride[::-1], conv.dilation[::-1], strict=True
    ):
        total = max((-(-n // stride) - 1) * stride + (kernel - 1) * dilation + 1 - n, 0)
        pads += [total // 2, total - total // 2]
    return F.conv2d(F.pad(x, pads), conv.weight, conv.bias, conv.stride, 0, conv.dilation, conv.groups)


def export_program(model: Detector) -> torch.export.ExportedProgram:
    """Export `OneImage` of a detector with `torch.export`."""
    transform = model.transform
    dynamic = torch.export.Dim.DYNAMIC
    if transform.keep_ratio:
        d = transform.divisor
        pixels = torch.rand(1, 3, 8, d, 11, d)
        blocks: Any = {2: dynamic, 4: dynamic}
        size = 8 * d - 6, 11 * d - 22
    else:
        side = transform.min_size
        pixels, blocks, size = torch.rand(1, 3, side, 1, side, 1), None, (side, side)
    device = transform.mean.device
    example = (pixels.to(device), *size, 400, 500, torch.tensor(model.score_threshold, device=device))
    sizes: Any = [dynamic] * 4 if transform.keep_ratio else [None, None, dynamic, dynamic]
    with torch.no_grad():
        return torch.export.export(OneImage(model), example, dynamic_shapes=(blocks, *sizes, None), strict=False)
