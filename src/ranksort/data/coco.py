"""COCO-style data sets: where their files are, and images with their objects."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

from .annotations import MIN_IMAGE_SIDE, Category, box_problem, decode_mask, objects, parse_annotations
from .lvis import repeat_factors

COCO_CATEGORIES = [
    Category(id, name)
    for id, name in enumerate(FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"])
    if name not in ("__background__", "N/A")
]
"""The 80 classes of COCO in the order of their labels, for models whose weights come without names."""


def find_split(
    root: Path,
    split: Literal["train", "val"],
    annotations: Path | None = None,
    images: Path | None = None,
    *,
    style: Literal["coco", "lvis"] = "coco",
) -> tuple[Path, Path]:
    """Finds a split under a folder that is laid out as COCO or in one of the usual simpler ways.

    Args:
        root: holds `annotations/instances_<split>2017.json` or `annotations/instances_<split>.json`, and the images in
            `<split>2017/`, `images/<split>2017/`, `images/<split>/`, `<split>/` or `images/`. For LVIS it holds
            `annotations/lvis_v1_<split>.json`, and the images in `train2017/` and `val2017/`.
        split: `train` or `val`.
        annotations: the annotation file, where it is another one.
        images: the images folder, likewise.
        style: which of these layouts.

    Returns:
        The images folder, the first of these that holds the first image of the annotation file, and that file.

    Raises:
        FileNotFoundError: one of the two is missing; the message names what was looked for.
    """
    names = [f"instances_{split}2017.json", f"instances_{split}.json"] if style == "coco" else [f"lvis_v1_{split}.json"]
    files = [root / "annotations" / name for name in names]
    annotations = annotations or next((file for file in files if file.is_file()), None)
    if annotations is None:
        raise FileNotFoundError(
            f"There is no {' or '.join(map(str, files))}; name the file with --data.{split}-annotations."
        )
    if not annotations.is_file():
        raise FileNotFoundError(f"The annotation file {annotations} does not exist.")
    if images is not None:
        return images, annotations
    # Searched for and not parsed, which takes 15 s for COCO and is the data set's business.
    key = "coco_url" if style == "lvis" else "file_name"
    match = re.search(rb'"%s"\s*:\s*("(?:[^"\\]|\\.)*")' % key.encode(), annotations.read_bytes())
    if match is None:
        raise ValueError(f'{annotations} names no image (no "{key}").')
    file_name = json.loads(match[1])
    folders = [root / name for name in (f"{split}2017", f"images/{split}2017", f"images/{split}", split, "images")]
    if style == "lvis":
        file_name, folders = "/".join(file_name.split("/")[-2:]), [root, root / "images"]
    images = next((folder for folder in folders if (folder / file_name).is_file()), None)
    if images is None:
        raise FileNotFoundError(
            f"The image {file_name} of {annotations} is in none of {', '.join(map(str, folders))}; "
            f"name the folder with --data.{split}-images."
        )
    return images, annotations


class CocoDataset(Dataset[tuple[Any, dict[str, Any]]]):
    """Images and objects of a COCO annotation file.

    For training the published rules hold: crowd regions, boxes without area, outside the image or under
    `min_box_size`, images with a side under 32 px and images without (remaining) objects are left out. For evaluation
    every image is there; the evaluator reads the annotations from the file.

    Args:
        images: the folder that the file names of the annotations are relative to.
        annotations: the JSON file.
        training: whether the rules of training apply.
        masks: whether targets hold masks.
        keep_empty_images: whether training uses images without objects.
        categories: the classes of a trained model, by which the objects are labelled then; they are matched by id and
            name. By default the classes of the file.
        transform: called with (image, target); `ranksort.data.transforms`.
        min_box_size: the least width and height of a box in training, in pixels.

    Attributes:
        categories: the classes in the order of the labels, which is the order of the category ids of the file.
        image_ids, file_names: of the images used, in the order of the file.
        landscape: whether each of them is wider than high.
        dropped: how much the rules of training leave out, by reason.

    Raises:
        ValueError: the file is malformed, or an object's class unknown to the model.
        FileNotFoundError: there is no such file or folder.
    """

    def __init__(
        self,
        images: Path,
        annotations: Path,
        *,
        training: bool,
        masks: bool = False,
        keep_empty_images: bool = False,
        categories: Sequence[Category] | None = None,
        transform: Callable[[Any, dict[str, Any]], tuple[Any, dict[str, Any]]] | None = None,
        min_box_size: float = 1.0,
    ) -> None:
        if not images.is_dir():
            raise FileNotFoundError(f"The images folder {images} does not exist.")
        file = parse_annotations(annotations, masks)
        file.require_usable()
        self.images_path, self.annotations_path = images, annotations
        self.categories = tuple(file.categories if categories is None else categories)
        self.masks, self.transform = masks, transform
        self.dropped = {"crowd": 0, "small boxes": 0, "images without objects": 0, "small images": 0}

        unknown = [category for category in file.categories if category not in self.categories]
        if unknown:
            raise ValueError(
                f"{annotations} has {len(unknown)} classes that the model does not know, such as {unknown[0].name!r} "
                f"with id {unknown[0].id}; the model knows {len(self.categories)}, such as {self.categories[0].name!r}."
            )
        objects_of: dict[int, list[dict[str, Any]]] = {image_id: [] for image_id in file.images}
        singles = objects(file.annotations)
        for annotation in singles:
            if training and box_problem(annotation, file.images[annotation["image_id"]], min_box_size):
                self.dropped["small boxes"] += 1
            else:
                objects_of[annotation["image_id"]].append(annotation)
        used = list(file.images.values())
        if training:
            self.dropped["crowd"] = len(file.annotations) - len(singles)
            large = [image for image in used if min(image["width"], image["height"]) >= MIN_IMAGE_SIDE]
            self.dropped["small images"] = len(used) - len(large)
            used = [image for image in large if objects_of[image["id"]] or keep_empty_images]
            self.dropped["images without objects"] = len(large) - len(used)
            if not used:
                raise ValueError(f"{annotations} leaves no image to train on (left out: {self.dropped}).")

        self.image_ids: list[int] = [image["id"] for image in used]
        self.landscape: list[bool] = [image["width"] > image["height"] for image in used]
        self.file_names: list[str] = [image["file_name"] for image in used]
        self._sizes = [(image["width"], image["height"]) for image in used]
        # The objects are kept in a few arrays and strings: reading many small Python objects in a forked worker
        # changes their reference counts, and so copies their memory into every worker.
        kept = [annotation for image_id in self.image_ids for annotation in objects_of[image_id]]
        label_of = {category.id: label for label, category in enumerate(self.categories)}
        self._labels = np.array([label_of[annotation["category_id"]] for annotation in kept], dtype=np.int64)
        self._boxes = np.array([annotation["bbox"] for annotation in kept], dtype=np.float64).reshape(-1, 4)
        self._boxes[:, 2:] += self._boxes[:, :2]
        self._ends = np.cumsum([len(objects_of[image_id]) for image_id in self.image_ids])
        self._segmentations = [
            json.dumps([annotation["segmentation"] for annotation in objects_of[image_id]]) if masks else ""
            for image_id in self.image_ids
        ]

    def repeat_factors(self, threshold: float) -> np.ndarray:
        """[I]: how often an epoch should have each image, on average; see `ranksort.data.lvis.repeat_factors`."""
        image = np.repeat(np.arange(len(self)), np.diff(self._ends, prepend=0))
        return repeat_factors(image, self._labels, len(self), threshold)

    def __str__(self) -> str:
        reasons = ", ".join(f"{count} {what}" for what, count in self.dropped.items() if count)
        return f"{len(self)} images of {len(self.categories)} classes, left out: {reasons or 'nothing'}"

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, item: int | tuple[int, int]) -> tuple[Any, dict[str, Any]]:
        """Loads and transforms an image and its objects.

        Args:
            item: an index, or (index, seed): the transform then draws what it would draw after
                `torch.manual_seed(seed)`, whatever was drawn before and in whichever worker.

        Returns:
            image: uint8 [3, H, W], RGB; and target: `boxes` float32 [G, 4] xyxy in pixels of the image, `labels` int64
            [G] from 0, with `masks=True` also `masks` uint8 [G, H, W] of 0 and 1, `image_id` int.

        Raises:
            FileNotFoundError, ValueError: the image is missing, unreadable, or not of the size that the file states.
        """
        if isinstance(item, int):
            return self._load(item)
        index, seed = item
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would seed the GPUs as well.
            torch.default_generator.manual_seed(seed)
            return self._load(index)

    def _load(self, index: int) -> tuple[Any, dict[str, Any]]:
        index = range(len(self))[index]
        width, height = self._sizes[index]
        path = self.images_path / self.file_names[index]
        picture = to_rgb(upright(read_image(path), width, height, path))
        image = tv_tensors.Image(torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous())

        of_image = slice(self._ends[index - 1] if index else 0, self._ends[index])
        boxes = torch.from_numpy(self._boxes[of_image]).float()
        target: dict[str, Any] = {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width)),
            "labels": torch.from_numpy(self._labels[of_image].copy()),
            "image_id": self.image_ids[index],
        }
        if self.masks:
            segmentations = json.loads(self._segmentations[index])
            masks = [decode_mask(segmentation, height, width) for segmentation in segmentations]
            target["masks"] = tv_tensors.Mask(torch.from_numpy(np.array(masks).reshape(-1, height, width)))
        return (image, target) if self.transform is None else self.transform(image, target)


def read_image(path: Path) -> Image.Image:
    """Reads and decodes an image file as it is stored.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no image, or damaged.
    """
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except FileNotFoundError:
        raise FileNotFoundError(f"The image {path} does not exist.") from None
    except Exception as error:  # a damaged file makes Pillow raise nearly anything
        raise ValueError(f"The image {path} cannot be read ({error}); replace it or take it out.") from error


def upright(image: Image.Image, width: int, height: int, path: Path) -> Image.Image:
    """Turns an image as its EXIF orientation says, if only then it has the size that its annotations are for.

    Raises:
        ValueError: it has that size neither way.
    """
    if image.size == (width, height):
        return image
    turned = ImageOps.exif_transpose(image)
    if turned.size != (width, height):
        raise ValueError(
            f"The image {path} is {image.width}x{image.height}, but its annotations are for {width}x{height}."
        )
    return turned


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts any kind of image to 8 bit RGB; 16 bit greyscale is scaled, which Pillow alone would clip."""
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
    return image.convert("RGB")
