"""How all detectors are called: as torchvision's are, with lists of images and of targets."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from ..losses.detection import Criterion, DetectionLosses, rank_sort_detection_losses
from .backbones import Backbone
from .images import ImageBatch, ImageTransform, check_input
from .postprocess import non_maximum_suppression

if TYPE_CHECKING:
    from ..evaluation.model_scores import ModelCalibration, ModelThresholds
    from ..prediction import Prediction


class Detector(nn.Module):
    """From images and targets to `losses`, or from images to what `detect` finds. Every detector has these two methods of its own.

    The class says what else is to be known of a detector to build it, train it and evaluate it: recipes, data sets and the training engine
    ask its attributes, never its name. One of ours is a line in `recipes/detectors.py`; one of a user's own may be in any file, see
    `examples/my_detector.py`. The constructor takes the arguments below, and `settings` by their names.

    Args:
        backbone: gives features from fine to coarse; those of strides 8, 16 and 32, or 4 to 32, are its last.
        transform: resizing and normalisation.
        num_classes: C; labels are 0..C-1, there is no background class.
        losses: what supervises it, see `Criterion`; by default RS Loss. With another one, what it calls its losses takes the place of
            `ranking` and `sorting`.
        score_threshold: least score of a detection, in 0..1; None: the published one, that of the class.
        nms_threshold: IoU above which the lower of two detections of a class is dropped; None: the published one.
        detections_per_image: most detections reported.

    Attributes:
        class_names: of the labels, which a checkpoint knows; "0", "1", ... for other models.
        thresholds: which scores of each label reach which precision, recall or LRP error, where validation data of the checkpoint's run say
            it, or None.
        calibration: gives the detections of an image calibrated scores, see `load_model`; None: they are as the model gives them.
        white: the value that is white in its greyscale images of more than 8 bits, where those it was trained on had such; 0: they had not.
    """

    has_boxes: ClassVar[bool] = True  # whether it learns boxes; else what it reports are those around its masks
    has_masks: ClassVar[bool] = False  # whether it learns and predicts masks
    keeps_ratio: ClassVar[bool] = True  # whether images keep their ratio of sides; else they become squares
    backbone_levels: ClassVar[int] = (
        3  # levels of the backbone that it uses: 3, of strides 8 to 32, or 4, from stride 4 on
    )
    channel_step: ClassVar[int] = 32  # what `channels` has to be a multiple of; the norms have 32 groups
    settings: ClassVar[tuple[str, ...]] = ("channels", "prior")
    """which of the model settings of a recipe its constructor takes by these names, besides those above"""
    class_layers: ClassVar[dict[str, int]] = {"class_logits": 1}
    """layers with outputs for each class, by the end of their names -> how many for each; they are ordered by anchor, if there are several
    at a cell, then class. When training starts from weights, this is how the classes that both models have keep what they have learnt"""
    score_threshold: float = 0.05  # the published one
    nms_threshold: float = 0.6

    def __init__(
        self,
        backbone: Backbone,
        transform: ImageTransform,
        num_classes: int,
        *,
        losses: Criterion = rank_sort_detection_losses,
        score_threshold: float | None = None,
        nms_threshold: float | None = None,
        detections_per_image: int = 100,
    ):
        super().__init__()
        if getattr(losses, "needs_boxes", False) and not self.has_boxes:
            raise ValueError(
                f"{type(self).__name__} learns masks without boxes, and this loss is made of errors of boxes: choose another --model.loss"
            )
        self.transform = transform
        self.backbone = backbone
        self.num_classes = num_classes
        self.criterion = losses
        if score_threshold is not None:
            self.score_threshold = score_threshold
        if nms_threshold is not None:
            self.nms_threshold = nms_threshold
        self.detections_per_image = detections_per_image
        self.class_names = tuple(map(str, range(num_classes)))
        self.white = 0.0
        self.thresholds: ModelThresholds | None = None
        self.calibration: ModelCalibration | None = None

    def forward(
        self,
        images: Sequence[Tensor],
        targets: Sequence[dict[str, Tensor]] | None = None,
        with_quality: bool = False,
    ) -> dict[str, Tensor] | DetectionLosses | list[dict[str, Tensor]]:
        """Losses in training mode, detections in evaluation mode.

        Args:
            images: RGB, float in 0..1 (or uint8), [3, H, W] each, of any sizes.
            targets: for training; one dict an image with `boxes` [G, 4] xyxy in pixels, `labels` int64 [G] in 0..C-1 and, for a detector of
                masks, `masks` [G, H, W], bool or 0 and 1. G may be 0.
            with_quality: whether the losses come with the quality of the positives, for logs.

        Returns:
            In training mode the losses by name, scalars to be summed; or `DetectionLosses`, which has them, where `with_quality`. In
            evaluation mode one dict an image with `boxes` [D, 4] xyxy in pixels of the original image, `scores` [D] in 0..1, falling,
            float64 if calibrated, `labels` [D] and, from a detector of masks, `masks`, bool [D, H, W], of the original image's size;
            tensors on the model's device, without gradients, which `detect` has. (`predict` takes files, too, and returns numpy arrays.)

        Raises:
            ValueError: in training mode without targets, or where an image or target has the wrong shape or a box has no area.
        """
        check_input(images, targets, self.num_classes, self.training, masks=self.has_masks)
        batch, targets = self.transform(images, targets)
        if not self.training:
            with torch.no_grad():
                detections = self.to_original(self.detect(batch), batch)
            return detections if self.calibration is None else list(map(self.calibration, detections))
        found = self.losses(batch, targets)
        if not isinstance(found, DetectionLosses):
            raise ValueError(
                f"`losses` of {type(self).__name__} must return DetectionLosses, as its criterion must; got {type(found).__name__}"
            )
        return found if with_quality else found.losses

    def predict(
        self,
        source: Any,
        *,
        score_threshold: float | str | None = None,
        batch_size: int | None = None,
        tile: int | None = None,
        overlap: float = 0.2,
    ) -> "Prediction | list[Prediction]":
        """What is in a photo, or in several: see `ranksort.prediction.predict`, whose arguments these are."""
        from ..prediction import predict

        return predict(self, source, score_threshold=score_threshold, batch_size=batch_size, tile=tile, overlap=overlap)

    def losses(self, batch: ImageBatch, targets: Sequence[dict[str, Tensor]]) -> DetectionLosses:
        """The losses of a batch whose targets are in its coordinates, and the quality of its positives."""
        raise NotImplementedError

    def detect(self, batch: ImageBatch) -> list[dict[str, Tensor]]:
        """The detections of a batch, boxes in its coordinates; masks as the detector makes them."""
        raise NotImplementedError

    def to_original(self, detections: list[dict[str, Tensor]], batch: ImageBatch) -> list[dict[str, Tensor]]:
        """Take what `detect` found to the original images."""
        return self.transform.to_original(detections, batch)

    def outputs_per_class(self, name: str) -> int:
        """How many outputs for each class the layer of a parameter has, by `class_layers`; 0: the layer has none."""
        layer = f".{name.rpartition('.')[0]}"
        return next((n for end, n in self.class_layers.items() if layer.endswith(f".{end}")), 0)

    def suppress(self, boxes: Tensor, scores: Tensor) -> dict[str, Tensor]:
        """`non_maximum_suppression` with this detector's thresholds."""
        return non_maximum_suppression(
            boxes,
            scores,
            score_threshold=self.score_threshold,
            nms_threshold=self.nms_threshold,
            detections_per_image=self.detections_per_image,
        )
