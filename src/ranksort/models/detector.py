"""The base class of detectors, which are called like torchvision's, with lists of images and targets."""

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
    """Base class: maps images and targets to `losses`, or images to detections (`detect`). Subclasses implement these two methods.

    Everything else that is needed to build, train and evaluate a detector is in class attributes: recipes, data sets and the engine use
    these, never its name. Built-in detectors have a line in `recipes/detectors.py`; a user's own may be in any file, see
    `examples/my_detector.py`. The constructor takes the arguments below, and `settings` by name.

    Args:
        backbone: gives features from fine to coarse; those of strides 8, 16 and 32, or 4 to 32, are its last.
        transform: resizing and normalisation.
        num_classes: C; labels are 0..C-1, there is no background class.
        losses: the training losses, see `Criterion`; by default RS Loss. With another criterion, the names of its losses replace
            `ranking` and `sorting`.
        score_threshold: minimum score of a detection, in 0..1; None: the published one, an attribute of the class.
        nms_threshold: IoU above which the lower-scoring of two detections of a class is dropped; None: the published one.
        detections_per_image: maximum number of detections.

    Attributes:
        class_names: names of the labels, from a checkpoint; "0", "1", ... for other models.
        thresholds: score thresholds of each label for a precision, recall or LRP error, from validation data of the checkpoint's run;
            or None.
        calibration: calibrates the scores of an image's detections, see `load_model`; None: scores are raw.
        white: value of white in greyscale images of more than 8 bits, if it was trained on such; 0: it was not.

    Examples:
        >>> import torch
        >>> from ranksort import create_model
        >>> model = create_model("ranksort_atss_r50_fpn_1x_coco", num_classes=3, backbone="resnet18", min_size=64, channels=64)
        >>> detections = model.eval()([torch.rand(3, 48, 64), torch.rand(3, 64, 64)])  # images may differ in size
        >>> len(detections), sorted(detections[0])
        (2, ['boxes', 'labels', 'scores'])
    """

    has_boxes: ClassVar[bool] = True  # whether it learns boxes; otherwise it reports the boxes around its masks
    has_masks: ClassVar[bool] = False  # whether it learns and predicts masks
    keeps_ratio: ClassVar[bool] = True  # whether images keep their aspect ratio; otherwise they become squares
    backbone_levels: ClassVar[int] = 3  # that it uses: 3, of strides 8 to 32, or 4, of strides 4 to 32
    channel_step: ClassVar[int] = 32  # `channels` has to be a multiple of this; the norms have 32 groups
    settings: ClassVar[tuple[str, ...]] = ("channels", "prior")
    """model settings of a recipe that its constructor takes by name, besides those above"""
    class_layers: ClassVar[dict[str, int]] = {"class_logits": 1}
    """layers with outputs per class, by the end of their names -> number of outputs per class; outputs are ordered by anchor (if a cell
    has several), then class. When training starts from weights, classes that both models have keep their outputs"""
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
                f"{type(self).__name__} learns masks without boxes, but this loss needs box errors: choose another --model.loss"
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
            targets: for training; one dict per image with `boxes` [G, 4] xyxy in pixels, `labels` int64 [G] in 0..C-1 and, for mask
                detectors, `masks` [G, H, W], bool or 0 and 1. G may be 0.
            with_quality: whether to return the quality of the positives with the losses, for logs.

        Returns:
            In training mode, the losses by name, scalars to be summed; or `DetectionLosses` with them, if `with_quality`. In evaluation
            mode, one dict per image with `boxes` [D, 4] xyxy in pixels of the original image, `scores` [D] in 0..1, descending, float64
            if calibrated, `labels` [D] and, from mask detectors, `masks`, bool [D, H, W], of the original image's size; tensors on the
            model's device, without gradients (for gradients call `detect`). `predict` also takes files, and returns numpy arrays.

        Raises:
            ValueError: there are no targets in training mode, an image or target has the wrong shape, or a box has no area.
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
        """Detect objects in one image or several; for the arguments see `ranksort.prediction.predict`."""
        from ..prediction import predict

        return predict(self, source, score_threshold=score_threshold, batch_size=batch_size, tile=tile, overlap=overlap)

    def losses(self, batch: ImageBatch, targets: Sequence[dict[str, Tensor]]) -> DetectionLosses:
        """The losses of a batch, with targets in its coordinates, and the quality of its positives."""
        raise NotImplementedError

    def detect(self, batch: ImageBatch) -> list[dict[str, Tensor]]:
        """The detections of a batch, with boxes in its coordinates and masks in the detector's own form."""
        raise NotImplementedError

    def to_original(self, detections: list[dict[str, Tensor]], batch: ImageBatch) -> list[dict[str, Tensor]]:
        """Map the result of `detect` to the original images."""
        return self.transform.to_original(detections, batch)

    def outputs_per_class(self, name: str) -> int:
        """Number of outputs per class of a parameter's layer, from `class_layers`; 0 if the layer has none."""
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
