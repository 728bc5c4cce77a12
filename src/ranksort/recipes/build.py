"""Build objects from recipes: the only place that turns settings into models, data sets and schedules."""

import copy
import dataclasses
import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

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
    """Build the detector of a recipe, in training mode.

    Args:
        recipe: a recipe, or a name as for `get_recipe`.
        num_classes: C; labels are 0..C-1. None: as in the recipe, 80 for COCO.
        pretrained_backbone: start from ImageNet weights. To train from random weights, also pass `frozen_stages=-1` and
            `train_batch_norm=True`, otherwise the first stages stay random.
        weights: a run folder, .ckpt, .safetensors or published .pth to start from. Everything that fits is loaded (see
            `ranksort.fine_tuning`); if something does not fit, a table is printed. A backbone in these weights replaces the ImageNet
            one.
        class_names: names of the C labels. With names, class outputs of the weights go to the classes of the same names; without, they
            are loaded only if the number of classes is the same.
        losses: the training losses, such as a function of your own; see `ranksort.losses.detection.Criterion`. None: the recipe's
            `model.loss`.
        model_overrides: fields of the recipe's model group: `backbone="resnet18"`, `min_size=480`, `score_threshold=.3`, ...
            `min_size` also replaces the training sizes of a multi-scale recipe. `detector` may also be a subclass of
            `ranksort.models.Detector`.

    Raises:
        ValueError: a name is unknown, the loss does not suit the detector, the weights cannot be read, or hardly any of them fit.
        FileNotFoundError: there are no such weights.

    Examples:
        >>> from ranksort import create_model
        >>> model = create_model("ranksort_atss_r50_fpn_1x_coco", backbone="resnet18", class_names=["cat", "dog"], min_size=320)
        >>> type(model).__name__, model.num_classes, model.training
        ('ATSS', 2, True)
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
    """Fill in the mean and standard deviation of pixels where the settings leave them open.

    The values are those that the backbone's weights were trained with: those of `trained` if given, else ImageNet's.

    Raises:
        ValueError: timm has no such backbone.
    """
    mean, std = pixel_statistics(settings.backbone)
    if trained is not None:
        mean, std = trained.pixel_mean or mean, trained.pixel_std or std
    return dataclasses.replace(settings, pixel_mean=settings.pixel_mean or mean, pixel_std=settings.pixel_std or std)


def build_dataset(
    recipe: Recipe, split: Literal["train", "val"], categories: Sequence[Category] | None = None
) -> CocoDataset:
    """Build the data set of a split, for training or evaluation.

    `categories` are the classes of a trained model; by default those of the annotation file.

    Raises:
        ValueError: there is no data, or it cannot be used.
        FileNotFoundError: a file or folder is missing.
    """
    data, model = recipe.data, recipe.model
    named = [getattr(data, f"{split}_{what}") for what in ("annotations", "images")]
    if not data.root and not all(named):
        raise ValueError(
            f"there is no data: name a folder with --data.root, or set --data.{split}-images and --data.{split}-annotations"
        )
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
    """Build the model to train; also returns what it copied from the `weights` it starts from.

    Updates the recipe: its number of classes, and which parts of the backbone are trained (all, if it starts from random weights), and
    how fast.
    """
    from ..fine_tuning import start_from

    settings = recipe.model
    settings.num_classes = len(train_set.categories)
    has_backbone = weights is not None and weights.has_backbone
    if not settings.pretrained_backbone and not has_backbone:
        settings.frozen_stages, settings.train_batch_norm = -1, True
        recipe.optimizer.backbone_rate = 1.0
    losses = build_losses(recipe, train_set)
    model = create_model(recipe, losses=losses, pretrained_backbone=settings.pretrained_backbone and not has_backbone)
    if weights is None:
        return model, None
    return model, start_from(weights, model, recipe, [category.name for category in train_set.categories])


def build_losses(recipe: Recipe, train_set: CocoDataset) -> Criterion:
    """Build the losses of a run; those that look back on an epoch get the length of an epoch of `train_set`."""
    world_size = max(recipe.training.devices, 1) * recipe.training.nodes
    batches = len(build_sampler(recipe, train_set, 0, world_size))
    return build_criterion(recipe.model.loss, batches, global_ranking=recipe.training.global_ranking)


def build_sampler(recipe: Recipe, train_set: CocoDataset, rank: int, world_size: int) -> AspectRatioBatchSampler:
    """Build the batch sampler of process `rank` of `world_size`."""
    return AspectRatioBatchSampler(
        train_set.landscape,
        images_at_once(recipe),
        repeat_factors=train_set.repeat_factors(recipe.data.repeat_threshold),
        seed=recipe.training.seed,
        rank=rank,
        world_size=world_size,
    )


def build_optimizer(recipe: Recipe, model: Detector) -> torch.optim.Optimizer:
    """Build the recipe's optimiser for the trained parameters."""
    settings, groups = recipe.optimizer, parameter_groups(recipe, model)
    if settings.algorithm == "adamw":
        return torch.optim.AdamW(groups, weight_decay=settings.weight_decay)
    return torch.optim.SGD(groups, weight_decay=settings.weight_decay, momentum=0.9)


def parameter_groups(recipe: Recipe, model: Detector) -> list[dict[str, Any]]:
    """The trained parameters and their learning rates: those of the backbone last, if theirs differs."""
    rate, share = learning_rate(recipe), recipe.optimizer.backbone_rate
    trained = [p for p in model.parameters() if p.requires_grad]
    if share == 1:
        return [{"params": trained, "lr": rate}]
    of_backbone = set(map(id, model.backbone.parameters()))
    rest, backbone = ([p for p in trained if (id(p) in of_backbone) is where] for where in (False, True))
    groups = [{"params": rest, "lr": rate}, {"params": backbone, "lr": rate * share}]
    return [group for group in groups if group["params"]]


def images_at_once(recipe: Recipe) -> int:
    """Images per batch on one device.

    Raises:
        ValueError: the images of a step cannot be divided evenly.
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
    """The recipe's learning rate, scaled linearly to the actual number of images per step."""
    return recipe.optimizer.lr * recipe.training.batch_size / recipe.optimizer.lr_batch_size


def describe(
    recipe: Recipe,
    train_set: CocoDataset,
    val_set: CocoDataset,
    taken: "Taken | None" = None,
    is_resumed: bool = False,
) -> str:
    """Describe the run in a few lines; `taken` is what was copied from weights."""
    start = f"\n{taken}" if taken else ""
    if not is_resumed and not recipe.model.pretrained_backbone and not (taken and taken.parts["backbone"][0]):
        start += "\nthe backbone starts from random weights: all of it is trained, including its batch norms"
    size, drawn = recipe.model.min_size, recipe.data.train_min_sizes or (recipe.model.min_size,)
    outside = f"\nwarning: the evaluation size of {size} px is outside the training sizes: set --model.min-size or --data.train-min-sizes"
    training, repeated = recipe.training, recipe.data.repeat_threshold > 0
    batches = len(build_sampler(recipe, train_set, 0, max(training.devices, 1) * training.nodes))
    steps = -(-batches // training.accumulate)
    return (
        f"training on {train_set}\n"
        f"evaluation on {counted(len(val_set), 'image')}: {val_set.origin}\n"
        f"images: {_image_sizes(recipe)}{'' if min(drawn) <= size <= max(drawn) else outside}\n"
        f"epoch: {counted(steps, 'step')} of {counted(training.batch_size, 'image')}"
        f"{', with repeated images of rare classes' if repeated else ''}\n"
        f"{_describe_rate(recipe, steps)}"
        f"{_many_workers(recipe)}"
        f"{start}"
    )


def _many_workers(recipe: Recipe) -> str:
    """A warning if more processes load images than there are cores."""
    workers = recipe.data.workers * max(recipe.training.devices, 1)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if workers <= cores:
        return ""
    return f"\nwarning: {workers} processes load images on {counted(cores, 'core')}: set a lower --data.workers"


def _describe_rate(recipe: Recipe, steps: int) -> str:
    """The learning rate and its schedule, for epochs of `steps` steps, with a warning about milestones that have no effect."""
    settings, epochs, rate = recipe.optimizer, recipe.training.epochs, f"learning rate {learning_rate(recipe):g}"
    images = recipe.training.batch_size
    if images != settings.lr_batch_size:
        rate += f" (the recipe's {settings.lr:g} for {settings.lr_batch_size} images per step, scaled to {images})"
    rate += _slower_backbone(recipe)
    if settings.warmup_steps > steps:
        rate += f"; warm-up over the first epoch instead of {settings.warmup_steps} steps"
    if settings.schedule == "cosine":
        return f"{rate}; cosine schedule down to 0"
    within, beyond = ([m for m in settings.milestones if (m >= epochs) is late] for late in (False, True))
    rate += f"; divided by 10 after {_epochs(within)}" if within else "; constant"
    if beyond:
        rate += (
            f"\nwarning: it would drop after {_epochs(beyond)}, but the run ends with epoch {epochs}: "
            "set --optimizer.milestones or --training.epochs"
        )
    return rate


def _slower_backbone(recipe: Recipe) -> str:
    share = recipe.optimizer.backbone_rate
    return "" if share == 1 else f", of the backbone {learning_rate(recipe) * share:g}"


def _epochs(numbers: Sequence[int]) -> str:
    return f"{'epochs' if len(numbers) > 1 else 'epoch'} {' and '.join(map(str, numbers))}"


def _image_sizes(recipe: Recipe) -> str:
    """The sizes of the images that the model sees, in training and in evaluation."""
    model, drawn = recipe.model, recipe.data.train_min_sizes
    if not get_detector(model.detector).keeps_ratio:
        return f"{model.min_size} x {model.min_size} px"
    sizes = f"short side {model.min_size} px"
    if drawn and drawn != (model.min_size,):
        sizes = f"short side {' or '.join(map(str, drawn))} px in training, {model.min_size} px in evaluation"
    return f"{sizes}, long side at most {model.max_size} px"


def summarize(recipe: Recipe, val_set: CocoDataset) -> dict[str, str]:
    """The most important settings, data, date and versions, to show with the metrics."""
    model, training, optimizer = recipe.model, recipe.training, recipe.optimizer
    start = "" if model.pretrained_backbone else " from random weights"
    if training.weights:
        start = f" from {training.weights}"
    schedule = f"divided by 10 after {_epochs(optimizer.milestones)}" if optimizer.milestones else "constant"
    return {
        "recipe": recipe.name,
        "detector": f"{model.detector}, {model.backbone}{start}",
        "loss": model.loss,
        "image size": _image_sizes(recipe),
        "epochs": str(training.epochs),
        "learning rate": f"{learning_rate(recipe):g} for {training.batch_size} images per step{_slower_backbone(recipe)}, "
        f"{optimizer.algorithm}, " + (schedule if optimizer.schedule == "step" else optimizer.schedule),
        "seed": str(training.seed),
        "trained on": recipe.data.train_annotations or recipe.data.root,
        "evaluated on": f"{val_set.origin}, {counted(len(val_set), 'image')}",
        "detections": f"score at least {model.score_threshold:g}, at most {model.detections_per_image} per image",
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "versions": f"ranksort {__version__}, torch {torch.__version__}",
    }


def rate_factor(settings: OptimizerSettings, steps_per_epoch: int, epochs: int) -> Callable[[int], float]:
    """The learning rate at a step, as a factor: a linear warm-up, of at most one epoch, times the schedule."""
    warmup = min(settings.warmup_steps, steps_per_epoch)

    def factor(step: int) -> float:
        rise = 1.0 if step >= warmup else _WARMUP_START + (1 - _WARMUP_START) * step / warmup
        if settings.schedule == "cosine":
            return rise * (1 + math.cos(math.pi * step / (steps_per_epoch * epochs))) / 2
        return rise * 0.1 ** sum(step >= milestone * steps_per_epoch for milestone in settings.milestones)

    return factor
