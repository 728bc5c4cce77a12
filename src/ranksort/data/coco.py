"""COCO-style data sets: images with their objects."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

from ..words import counted, listed
from .coco_checks import MIN_IMAGE_SIDE
from .coco_columns import Category, CocoFile, require_known
from .coco_file import read_coco_file
from .faults import VALIDATION
from .images import ImageFolder, read_image, require_folder, to_rgb, upright
from .lvis import repeat_factors
from .segmentations import decode_mask
from .splits import Part, part_of
from .white import find_white

COCO_CATEGORIES = [
    Category(id, name)
    for id, name in enumerate(FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"])
    if name not in ("__background__", "N/A")
]
"""The 80 classes of COCO in the order of their labels, for models whose weights come without names."""


class CocoDataset(Dataset[tuple[Any, dict[str, Any]]]):
    """Images and objects of a COCO annotation file.

    Training follows the published rules: crowd regions, boxes without area, outside the image or under `min_box_size`, images with a
    side under 32 px and images without (remaining) objects are left out. Evaluation uses every image.

    Args:
        images: the folder that file names in the annotations are relative to.
        annotations: the JSON file.
        part: which part of a file that is split by image into training and validation; None: all of it.
        training: whether the rules for training apply.
        masks: whether targets have masks. Objects whose mask has no pixel are then left out of training.
        keep_empty_images: whether training uses images without objects.
        keep_crowds: treat annotations marked as crowd as objects.
        categories: the classes of a trained model, which then define the labels; they are matched by id and name. By default the
            classes of the file except for placeholders, see `CocoFile.placeholders`.
        transform: called with (image, target); see `ranksort.data.transforms`.
        min_box_size: minimum width and height of a box in training, in pixels.
        white: value of white in images of more than 8 bits, see `to_rgb`; 0: derived from the images, see `find_white`.

    Attributes:
        categories: the classes in the order of the labels, which is the order of the category ids of the file.
        file: the annotations, for evaluation; None in training, where they are no longer needed.
        image_ids: of the images used, in the order of the file.
        landscape: whether each of them is wider than high.
        white: as derived or given.
        dropped: how much the rules for training leave out, by reason.
        not_used: other annotation files beside one that is split, to be reported.

    Raises:
        ValueError: the file is malformed, or the model does not have the class of an object.
        FileNotFoundError: there is no such file or folder, or an image is missing.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from ranksort.data.coco import CocoDataset
        >>> from ranksort.data.synthetic import write_synthetic_dataset
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     root = write_synthetic_dataset(Path(folder), train_images=2, val_images=1)
        ...     dataset = CocoDataset(root / "images", root / "annotations/instances_train.json", training=True)
        ...     image, target = dataset[0]
        >>> image.dtype, image.shape[0], target["boxes"].shape[1], len(dataset.categories)
        (torch.uint8, 3, 4, 8)
    """

    def __init__(
        self,
        images: Path,
        annotations: Path,
        part: Part | None = None,
        *,
        training: bool,
        masks: bool = False,
        keep_empty_images: bool = False,
        keep_crowds: bool = False,
        categories: Sequence[Category] | None = None,
        transform: Callable[[Any, dict[str, Any]], tuple[Any, dict[str, Any]]] | None = None,
        min_box_size: float = 1.0,
        white: float = 0,
    ) -> None:
        require_folder(images)
        file = read_coco_file(annotations, segmentations=masks, keep_crowds=keep_crowds)
        if training:
            empty = ("no object to train on", "no mask to train on") if keep_empty_images else ()
            file.require("masks" if masks else "boxes", without=empty)
        else:
            file.require("mask_evaluation" if masks else "evaluation", also=VALIDATION)
        self.annotations_path, self.part, self.not_used = annotations, part, list[Path]()
        groups = [group for group in file.placeholders() if group not in (categories or ())]
        file = file.without_categories(groups)
        self.categories = tuple(file.categories if categories is None else categories)
        self.masks, self.training, self.transform = masks, training, transform
        require_known(file, self.categories)
        if part is not None:
            file = part_of(file, part)
        self.file = None if training else file
        objects = file.annotations
        is_object = ~objects.crowd
        is_used = np.ones(len(file.images), dtype=bool)
        self.dropped: dict[str, int] = {}
        if training:
            is_object, is_used = self._training_rules(file, keep_empty_images, min_box_size)
            self.dropped |= {
                f"class {g.name!r}, which has no object and only names the group of the others": 1 for g in groups
            }
            if not is_used.any():
                raise ValueError(f"{annotations} leaves no image to train on (left out: {self._left_out()}).")

        used = np.flatnonzero(is_used)
        self.image_ids = [file.images.ids[n] for n in used.tolist()]
        self._widths, self._heights = file.images.widths[used], file.images.heights[used]
        self.landscape: list[bool] = (self._widths > self._heights).tolist()
        self._used, self._names = used, file.images.file_names
        self._folder = ImageFolder(images, file.images.file_names)
        self._folder.require(used.tolist())
        self.white = white or find_white(self._sample_paths())
        # The objects stay in a few arrays and blocks of bytes: reading many small Python objects in a forked worker
        # changes their reference counts, which copies their memory into every worker.
        kept = np.flatnonzero(is_object & is_used[objects.image])
        kept = kept[np.argsort(objects.image[kept], kind="stable")]
        label_of = {category: label for label, category in enumerate(self.categories)}
        self._labels = np.array([label_of[c] for c in file.categories], dtype=np.int64)[objects.category[kept]]
        self._boxes = objects.boxes[kept]
        self._boxes[:, 2:] += self._boxes[:, :2]
        self._ends = np.cumsum(np.bincount(objects.image[kept], minlength=len(file.images))[used])
        self._segmentations, self._places = objects.segmentations, kept

    def _training_rules(
        self, file: CocoFile, keep_empty_images: bool, min_box_size: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Which annotations and which images training uses, bool [A] and bool [I]."""
        objects, images = file.annotations, file.images
        is_object = file.trainable(min_box_size)
        self.dropped["crowd"] = int(objects.crowd.sum())
        self.dropped |= {
            kind.replace("box", "boxes"): int(faulty.sum()) for kind, faulty in file.box_faults(min_box_size).items()
        }
        if self.masks and objects.mask_areas is not None:
            self.dropped["masks without a pixel"] = int((is_object & (objects.mask_areas == 0)).sum())
            is_object &= objects.mask_areas != 0
        large = np.minimum(images.widths, images.heights) >= MIN_IMAGE_SIDE
        with_objects = np.bincount(objects.image[is_object], minlength=len(images)) > 0
        is_used = large & (with_objects | keep_empty_images)
        self.dropped["images without objects"] = int(large.sum() - is_used.sum())
        self.dropped["small images"] = int((~large).sum())
        return is_object, is_used

    def __getstate__(self) -> dict[str, Any]:
        """The state for worker processes that are not forked, without what only evaluation needs."""
        return {**vars(self), "file": None}

    def _sample_paths(self) -> list[Path]:
        """Derive white from a few hundred images, evenly spread; there may be millions."""
        return [self._folder.path(n) for n in self._used[:: max(1, len(self._used) // 200)].tolist()]

    def path(self, index: int) -> Path:
        """Where an image is.

        Raises:
            FileNotFoundError: it is not found.
        """
        return self._folder.path(int(self._used[index]))

    def file_name(self, index: int) -> str:
        """The file name of an image in the annotation file."""
        return self._names[int(self._used[index])].decode("utf-8", "replace")

    def repeat_factors(self, threshold: float) -> np.ndarray:
        """[I]: how often an epoch should contain each image, on average; see `ranksort.data.lvis.repeat_factors`."""
        image = np.repeat(np.arange(len(self)), np.diff(self._ends, prepend=0))
        return repeat_factors(image, self._labels, len(self), threshold)

    def __str__(self) -> str:
        return (
            f"{counted(len(self), 'image')} of {counted(len(self.categories), 'class')}, left out: {self._left_out()}"
        )

    def _left_out(self) -> str:
        return ", ".join(f"{count} {what}" for what, count in self.dropped.items() if count) or "nothing"

    @property
    def origin(self) -> str:
        """The source of the images, in words."""
        if self.part is None:
            return str(self.annotations_path)
        share = "four fifths" if self.part == "train" else "one fifth"
        others = f" (not used: {listed(self.not_used)})" if self.not_used else ""
        return f"{share} of {self.annotations_path}, whose images are split in the same way each time{others}"

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, item: int | tuple[int, int]) -> tuple[Any, dict[str, Any]]:
        """Load and transform an image and its objects.

        Args:
            item: an index, or (index, seed): the transform then draws what it would draw after
                `torch.manual_seed(seed)`, independent of earlier draws and of the worker.

        Returns:
            image: uint8 [3, H, W], RGB; and target: `boxes` float32 [G, 4] xyxy in pixels of the image, `labels` int64
            [G] from 0, with `masks=True` also `masks` uint8 [G, H, W] of 0 and 1, `image_id` int.

        Raises:
            FileNotFoundError: the image is missing.
            ValueError: it is unreadable, or does not have the size stated in the file.
        """
        if isinstance(item, int):
            return self._load(item)
        index, seed = item
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would also seed the GPUs.
            torch.default_generator.manual_seed(seed)
            return self._load(index)

    def _load(self, index: int) -> tuple[Any, dict[str, Any]]:
        index = range(len(self))[index]
        width, height = int(self._widths[index]), int(self._heights[index])
        path = self.path(index)
        picture = to_rgb(upright(read_image(path), width, height, path), self.white)
        # Channels last, as read from the file: halves the time to resize, with the same result.
        image = tv_tensors.Image(torch.from_numpy(np.array(picture)).permute(2, 0, 1))

        of_image = slice(self._ends[index - 1] if index else 0, self._ends[index])
        boxes, labels = self._boxes[of_image], self._labels[of_image]
        target: dict[str, Any] = {"image_id": self.image_ids[index]}
        if self._segmentations is not None:
            segmentations = [self._segmentations[n] for n in self._places[of_image].tolist()]
            masks = np.array([decode_mask(s, height, width) for s in segmentations], dtype=np.uint8)
            masks = masks.reshape(-1, height, width)
            # With very many polygons, empty masks are only found here, see `read_coco_file`.
            if self.training and not (kept := masks.any(axis=(1, 2))).all():
                warnings.warn(f"{path}: left out {int((~kept).sum())} objects whose masks have no pixel", stacklevel=2)
                boxes, labels, masks = boxes[kept], labels[kept], masks[kept]
            target["masks"] = tv_tensors.Mask(torch.from_numpy(masks))
        box_tensor = torch.from_numpy(boxes).float()
        target["boxes"] = tv_tensors.BoundingBoxes(box_tensor, format="XYXY", canvas_size=(height, width))
        target["labels"] = torch.from_numpy(labels.copy())
        return (image, target) if self.transform is None else self.transform(image, target)
