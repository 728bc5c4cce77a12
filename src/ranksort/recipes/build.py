"""From recipes to objects: the only place which turns settings into models, data sets and schedules."""

import copy
import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from .. import __version__
from ..data.coco import CocoDataset
from ..data.coco_columns import Category
from ..data.layouts import coco_files, find_split
from ..data.samplers import AspectRatioBatchSampler
from ..data.transforms import ssd_transforms, training_transforms
from ..losses.criteria import build_criterion
from ..losses.detection import Criterion
from ..models import Detector
from ..models.backbones import build_backbone, pixel_statistics
from ..models.images import ImageTransform
from ..words import counted
from .detectors import get_detector
from .find import get_recipe
from .recipe import ModelSettings, OptimizerSettings, Recipe

if TYPE_CHECKING:
    from ..fine_tuning import Taken, Weights

_WARMUP_START = 0.001
_OF_EVERY_DETECTOR = ("score_threshold", "nms_threshold", "detections_per_image")  # settings


def create_model(
    recipe: str | Recipe,
    *,
    num_classes: int | None = None,
    pretrained_backbone: bool = False,
    weights: str | Path | None = None,
    class_names: Sequence[str] | None = None,
    losses: Criterion | None = None,
    **model_overrides: Any,
) -> Detector:
    """Builds the detector of a recipe, in training mode.

    Args:
        recipe: a name as of `get_recipe`, or a recipe.
        num_classes: C, labels are 0..C-1; None: as the recipe says, 80 for COCO.
        pretrained_backbone: start from ImageNet weights. To train from random ones, pass `frozen_stages=-1` and
            `train_batch_norm=True`, too: else the first stages stay random.
        weights: a run folder, .ckpt, .safetensors or published .pth to start from. All that fits is taken, see `ranksort.fine_tuning`, and
            if that is not all, a table is printed. Weights which have the backbone replace those of ImageNet.
        class_names: of the labels, C of them. With these, what the weights know of a class goes to the class of that name; without, it is
            taken only where the weights have as many classes.
        losses: what supervises the detector, such as a function of one's own, see `ranksort.losses.detection.Criterion`; None: the
            recipe's `model.loss`.
        model_overrides: fields of the recipe's model group: `backbone="resnet18"`, `min_size=480`, `score_threshold=.3`, ...
            A `min_size` is that of training, too: it replaces the sizes which a multi-scale recipe draws from. `detector` may also
            be a class, a subclass of `ranksort.models.Detector`.

    Raises:
        ValueError: where a name is unknown, the loss is not for such a detector, the weights cannot be read, or hardly anything of them
            fits.
        FileNotFoundError: where there are no such weights.
    """
    from ..fine_tuning import read_weights, start_from

    recipe = copy.deepcopy(get_recipe(recipe) if isinstance(recipe, str) else recipe)
    fields = [field.name for field in dataclasses.fields(recipe.model)]
    for name, value in model_overrides.items():
        if name not in fields:
            raise ValueError(f"the model group of a recipe has no field {name!r}; it has {', '.join(fields)}")
        setattr(recipe.model, name, value)
    if "min_size" in model_overrides:
        recipe.data.train_min_sizes = ()
    if num_classes is not None or class_names is not None:
        recipe.model.num_classes = num_classes if num_classes is not None else len(class_names or ())
    if class_names is not None and len(class_names) != recipe.model.num_classes:
        raise ValueError(f"num_classes is {recipe.model.num_classes}, but there are {len(class_names)} class_names")
    recipe.check()
    start = read_weights(weights, recipe) if weights is not None else None
    if start is not None:
        recipe.model = with_pixel_statistics(recipe.model, start.trained_backbone)
    model = _build(recipe, pretrained_backbone and not (start and start.has_backbone), losses)
    if class_names is not None:
        model.class_names = tuple(class_names)
    if start is not None:
        taken = start_from(start, model, recipe, class_names)
        if taken.new_tensors or taken.new_classes or taken.notes:
            print(taken)
    return model


def _build(recipe: Recipe, pretrained_backbone: bool, losses: Criterion | None = None) -> Detector:
    settings = with_pixel_statistics(recipe.model)
    detector = get_detector(settings.detector)
    backbone = build_backbone(
        settings.backbone,
        pretrained=pretrained_backbone,
        frozen_stages=settings.frozen_stages,
        train_batch_norm=settings.train_batch_norm,
        deformable_convs=settings.deformable_convs,
        levels=detector.backbone_levels,
    )
    transform = ImageTransform(
        settings.min_size,
        settings.max_size,
        settings.pixel_mean,
        settings.pixel_std,
        recipe.data.train_min_sizes,
        keep_ratio=detector.keeps_ratio,
    )
    losses = losses or build_criterion(settings.loss, global_ranking=recipe.training.global_ranking)
    options = {name: getattr(settings, name) for name in (*detector.settings, *_OF_EVERY_DETECTOR)}
    return detector(backbone, transform, settings.num_classes, losses=losses, **options)


def with_pixel_statistics(settings: ModelSettings, trained: ModelSettings | None = None) -> ModelSettings:
    """Return the settings with a mean and deviation of pixels where they have none.

    They are those which the backbone's weights were trained with: `trained` has them, else they are ImageNet's.

    Raises:
        ValueError: where timm knows no such backbone.
    """
    mean, std = pixel_statistics(settings.backbone)
    if trained is not None:
        mean, std = trained.pixel_mean or mean, trained.pixel_std or std
    return dataclasses.replace(settings, pixel_mean=settings.pixel_mean or mean, pixel_std=settings.pixel_std or std)


def build_dataset(
    recipe: Recipe, split: Literal["train", "val"], categories: Sequence[Category] | None = None
) -> CocoDataset:
    """The images of a split, for training or for evaluation.

    `categories` are the classes of a trained model; by default those of the annotation file.

    Raises:
        ValueError, FileNotFoundError: where there are none, or they cannot be used.
    """
    data, model = recipe.data, recipe.model
    named = [getattr(data, f"{split}_{what}") for what in ("annotations", "images")]
    if not data.root and not all(named):
        raise ValueError(f"there is no data: name a folder by --data.root, or --data.{split}-images and -annotations")
    paths = (Path(path) if path else None for path in named)
    divide = not data.train_annotations and not data.val_annotations
    files = find_split(Path(data.root), split, *paths, style=recipe.evaluation.style, divide=divide)
    if data.augmentation == "ssd":
        transform = ssd_transforms(model.min_size, with_pixel_statistics(model).pixel_mean, data.flip)
    else:
        fill = with_pixel_statistics(model).pixel_mean if data.augmentation == "jitter" else None
        transform = training_transforms(data.train_min_sizes or (model.min_size,), model.max_size, data.flip, fill)
    dataset = CocoDataset(
        *files,
        training=split == "train",
        masks=model.has_masks,
        keep_empty_images=data.keep_empty_images,
        keep_crowds=data.crowd == "keep",
        categories=categories,
        transform=transform if split == "train" else None,
        min_box_size=data.min_box_size,
        white=data.white,
    )
    if files.part is not None:
        dataset.not_used = [file for file in coco_files(Path(data.root)) if file != files.annotations]
    return dataset


def build_untrained(
    recipe: Recipe, train_set: CocoDataset, weights: "Weights | None" = None
) -> "tuple[Detector, Taken | None]":
    """The model to train, and what it took of the `weights` it starts from.

    Its classes become those of the recipe, and what of the backbone is trained: all, if it starts from random weights.
    """
    from ..fine_tuning import start_from

    settings = recipe.model
    settings.num_classes = len(train_set.categories)
    has_backbone = weights is not None and weights.has_backbone
    if not settings.pretrained_backbone and not has_backbone:
        settings.frozen_stages, settings.train_batch_norm = -1, True
    losses = build_losses(recipe, train_set)
    model = create_model(recipe, losses=losses, pretrained_backbone=settings.pretrained_backbone and not has_backbone)
    if weights is None:
        return model, None
    return model, start_from(weights, model, recipe, [category.name for category in train_set.categories])


def build_losses(recipe: Recipe, train_set: CocoDataset) -> Criterion:
    """What supervises a run; for what looks back on an epoch, one of these images."""
    world_size = max(recipe.training.devices, 1) * recipe.training.nodes
    batches = len(build_sampler(recipe, train_set, 0, world_size))
    return build_criterion(recipe.model.loss, batches, global_ranking=recipe.training.global_ranking)


def build_sampler(recipe: Recipe, train_set: CocoDataset, rank: int, world_size: int) -> AspectRatioBatchSampler:
    """What makes the batches of process `rank` of `world_size`."""
    return AspectRatioBatchSampler(
        train_set.landscape,
        images_at_once(recipe),
        repeat_factors=train_set.repeat_factors(recipe.data.repeat_threshold),
        seed=recipe.training.seed,
        rank=rank,
        world_size=world_size,
    )


def build_optimizer(recipe: Recipe, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The recipe's optimiser of those parameters which are trained."""
    settings, rate = recipe.optimizer, learning_rate(recipe)
    trained = [p for p in parameters if p.requires_grad]
    if settings.algorithm == "adamw":
        return torch.optim.AdamW(trained, lr=rate, weight_decay=settings.weight_decay)
    return torch.optim.SGD(trained, lr=rate, weight_decay=settings.weight_decay, momentum=0.9)


def images_at_once(recipe: Recipe) -> int:
    """Images in a batch on one device.

    Raises:
        ValueError: where the images of a step cannot be shared out evenly.
    """
    training = recipe.training
    parts = max(training.devices, 1) * training.nodes * training.accumulate
    if training.batch_size % parts:
        raise ValueError(
            f"a batch of {training.batch_size} images cannot be divided by {parts} (devices x nodes x accumulate): "
            f"set --training.batch-size to a multiple of {parts}"
        )
    return training.batch_size // parts


def learning_rate(recipe: Recipe) -> float:
    """The recipe's learning rate, scaled linearly to the actual number of images a step."""
    return recipe.optimizer.lr * recipe.training.batch_size / recipe.optimizer.lr_batch_size


def describe(
    recipe: Recipe,
    train_set: CocoDataset,
    val_set: CocoDataset,
    taken: "Taken | None" = None,
    is_resumed: bool = False,
) -> str:
    """What is going to be trained, in a few lines to print; `taken` of the weights that it starts from."""
    start = f"\n{taken}" if taken else ""
    if not is_resumed and not recipe.model.pretrained_backbone and not (taken and taken.parts["backbone"][0]):
        start += "\nthe backbone starts from random weights: all of it is trained, and its batch norms as well"
    size, drawn = recipe.model.min_size, recipe.data.train_min_sizes or (recipe.model.min_size,)
    outside = f"\nno image is trained on at the {size} px of evaluation: set --model.min-size or --data.train-min-sizes"
    training, repeated = recipe.training, recipe.data.repeat_threshold > 0
    batches = len(build_sampler(recipe, train_set, 0, max(training.devices, 1) * training.nodes))
    steps = -(-batches // training.accumulate)
    return (
        f"training on {train_set}\n"
        f"evaluation on {counted(len(val_set), 'image')}: {val_set.origin}\n"
        f"images: {_image_sizes(recipe)}{'' if min(drawn) <= size <= max(drawn) else outside}\n"
        f"an epoch: {counted(steps, 'step')} of {counted(training.batch_size, 'image')}"
        f"{', images of rare classes more than once' if repeated else ''}\n"
        f"{_describe_rate(recipe, steps)}"
        f"{start}"
    )


def _describe_rate(recipe: Recipe, steps: int) -> str:
    """The learning rate and its schedule over epochs of so many steps, with what of it will not take effect."""
    settings, epochs, rate = recipe.optimizer, recipe.training.epochs, f"learning rate {learning_rate(recipe):g}"
    images = recipe.training.batch_size
    if images != settings.lr_batch_size:
        rate += f", which is the recipe's {settings.lr:g} for {settings.lr_batch_size} images a step scaled to {images}"
    if settings.warmup_steps > steps:
        rate += f"; it rises over the first epoch, not over {settings.warmup_steps} steps"
    if settings.schedule == "cosine":
        return f"{rate}; it falls along a cosine to 0"
    within, beyond = ([m for m in settings.milestones if (m >= epochs) is late] for late in (False, True))
    rate += f"; a tenth after {_epochs(within)}" if within else "; it does not fall"
    if beyond:
        rate += (
            f"\nwarning: it would fall after {_epochs(beyond)}, but the run ends with epoch {epochs}: "
            "set --optimizer.milestones or --training.epochs"
        )
    return rate


def _epochs(numbers: Sequence[int]) -> str:
    return f"{'epochs' if len(numbers) > 1 else 'epoch'} {' and '.join(map(str, numbers))}"


def _image_sizes(recipe: Recipe) -> str:
    """How large the images are that the model sees, in training and in evaluation."""
    model, drawn = recipe.model, recipe.data.train_min_sizes
    if not get_detector(model.detector).keeps_ratio:
        return f"{model.min_size} x {model.min_size} px"
    sizes = f"short side {model.min_size} px"
    if drawn and drawn != (model.min_size,):
        sizes = f"short side {' or '.join(map(str, drawn))} px in training, {model.min_size} px in evaluation"
    return f"{sizes}, long side at most {model.max_size} px"


def summarize(recipe: Recipe, val_set: CocoDataset) -> dict[str, str]:
    """The settings which matter most, and what was evaluated when on which versions, to be shown with the numbers."""
    model, training, optimizer = recipe.model, recipe.training, recipe.optimizer
    start = "" if model.pretrained_backbone else " from random weights"
    if training.weights:
        start = f" from {training.weights}"
    schedule = f"falling after {_epochs(optimizer.milestones)}" if optimizer.milestones else "constant"
    return {
        "recipe": recipe.name,
        "detector": f"{model.detector}, {model.backbone}{start}",
        "loss": model.loss,
        "image size": _image_sizes(recipe),
        "epochs": str(training.epochs),
        "learning rate": f"{learning_rate(recipe):g} for {training.batch_size} images a step, {optimizer.algorithm}, "
        + (schedule if optimizer.schedule == "step" else optimizer.schedule),
        "seed": str(training.seed),
        "trained on": recipe.data.train_annotations or recipe.data.root,
        "evaluated on": f"{val_set.origin}, {counted(len(val_set), 'image')}",
        "detections": f"score at least {model.score_threshold:g}, at most {model.detections_per_image} an image",
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "versions": f"ranksort {__version__}, torch {torch.__version__}",
    }


def rate_factor(settings: OptimizerSettings, steps_per_epoch: int, epochs: int) -> Callable[[int], float]:
    """The learning rate at a step, as a factor: a linear warm-up, which ends with the first epoch at the latest, times the schedule."""
    warmup = min(settings.warmup_steps, steps_per_epoch)

    def factor(step: int) -> float:
        rise = 1.0 if step >= warmup else _WARMUP_START + (1 - _WARMUP_START) * step / warmup
        if settings.schedule == "cosine":
            return rise * (1 + math.cos(math.pi * step / (steps_per_epoch * epochs))) / 2
        return rise * 0.1 ** sum(step >= milestone * steps_per_epoch for milestone in settings.milestones)

    return factor
