"""The settings of a training run. A recipe is a function that returns a `Recipe`; deriving one from another takes a few lines:

def my_recipe() -> Recipe:
    recipe = ranksort_atss_r50_fpn_1x_coco()
    recipe.model.backbone = "resnet18"
    return recipe

A recipe derived from a multi-scale recipe sets data.train_min_sizes along with model.min_size: the first is for training, the second
for evaluation. If only model.min_size is given to `create_model` or on the command line, it is used for both.

The comment or docstring of a setting is its help on the command line.
"""

import dataclasses
import json
import os
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import Any, Literal, get_args, get_origin, get_type_hints

from .detectors import DetectorName, as_named, get_detector, recorded

DATA_PATHS = ("root", "train_annotations", "train_images", "val_annotations", "val_images")
"""The fields of `DataSettings` that are paths."""


@dataclass
class DataSettings:
    """The data set and its augmentation."""

    root: str = ""
    """folder of images and COCO annotations, in the layout of COCO or Roboflow, or with a single annotation file, which is split into
    training and validation"""
    train_annotations: str = ""  # annotation file to train on, if it is not found in the root
    train_images: str = ""  # folder of the images to train on
    val_annotations: str = ""  # annotation file to evaluate on
    val_images: str = ""  # folder of the images to evaluate on
    train_min_sizes: tuple[int, ...] = ()
    """short sides in pixels, one drawn at random for each training image; none: model.min-size, which replaces a recipe's sizes if it is
    given alone"""
    flip: float = 0.5  # probability of a horizontal flip
    augmentation: Literal["flip", "jitter", "ssd"] = "flip"
    """augmentation besides resizing; flip: horizontal flips; jitter, for small data: also scaling by .5 to 2, cropping or padding to the
    original size, and slight colour changes; ssd: also colour distortion, expansion and random crops, as in SSD"""
    keep_empty_images: bool = False  # also train on images without objects
    crowd: Literal["drop", "keep"] = "drop"
    """what to do with annotations marked as crowd; keep: treat them as objects, because some exporters mark every mask as crowd"""
    min_box_size: float = 1.0  # do not train on objects with a side shorter than this many pixels
    repeat_threshold: float = 0.0
    """repeat images within an epoch if they have a class that occurs in less than this fraction of the images, as for LVIS; 0: never"""
    white: float = 0.0
    """value of white in greyscale images of more than 8 bits, such as 4095; 0: derived from the training images"""
    workers: int = 4  # processes per device that load images; 0: load in the main process

    def absolute(self) -> "DataSettings":
        """A copy with absolute paths."""
        return replace(self, **{name: os.path.abspath(path) for name in DATA_PATHS if (path := getattr(self, name))})


@dataclass
class ModelSettings:
    """The architecture of the detector and its post-processing."""

    detector: DetectorName = "atss"
    """one of the built-in detectors, or file.py:Class for your own; solov2_light has a head of half the width, for images of half the
    size"""
    loss: Literal["rank_sort", "average_lrp", "average_precision", "focal", "quality_focal", "varifocal"] = "rank_sort"
    """classification loss, all else being equal; all but rank_sort are baselines for comparison"""
    backbone: str = "resnet50"  # a torchvision ResNet or ResNeXt, or timm/<model>
    pretrained_backbone: bool = True  # start training from ImageNet weights
    frozen_stages: int = 1  # number of frozen backbone stages, in addition to the stem; -1: freeze nothing
    train_batch_norm: bool = False  # use batch statistics instead of the stored ones
    deformable_convs: bool = False
    """modulated deformable 3x3 convolutions (DCNv2) in stages 2 to 4 of a ResNet or ResNeXt"""
    upsampling: Literal["nearest", "carafe"] = "nearest"  # upsampling in the feature pyramid of an R-CNN
    proposals: int = 1000
    """maximum number of proposals per image of an R-CNN; fewer are faster, and enough for small images"""
    channels: int = 256  # channels of the feature pyramid and the heads
    head_convs: int = 4  # depth of the towers of a dense head
    prior: float = 0.01
    """class probability at the start of training; ranking does not fix the level of the scores, so it has a lasting effect"""
    num_classes: int = 80  # for models created without data; training takes the number from the annotation file
    min_size: int = 800
    """short side in pixels after resizing (both sides for yolact); in training, data.train-min-sizes if given"""
    max_size: int = 1333  # upper bound of the long side in pixels
    pixel_mean: tuple[float, ...] = ()
    """mean of each RGB channel, in 0..255, subtracted from the images; none: the one that the backbone was pretrained with"""
    pixel_std: tuple[float, ...] = ()
    """standard deviation of each RGB channel, in 0..255, by which the images are divided; none: as for the mean"""
    score_threshold: float = 0.05
    """minimum score of a detection; .4 for the R-CNNs and .6 for LVIS, as published, may hide many detections after short runs"""
    nms_threshold: float = 0.6
    """IoU above which the lower-scoring of two detections of a class is dropped; solov2 lowers scores instead"""
    detections_per_image: int = 100  # maximum number of detections per image

    @property
    def has_masks(self) -> bool:
        """Whether the detector learns and predicts masks."""
        return get_detector(self.detector).has_masks


@dataclass
class OptimizerSettings:
    """The optimiser and the learning-rate schedule."""

    algorithm: Literal["sgd", "adamw"] = "sgd"  # stochastic gradient descent with momentum .9, or AdamW
    lr: float = 0.01  # learning rate for optimizer.lr-batch-size images; scaled linearly to the actual batch size
    lr_batch_size: int = 16  # batch size that optimizer.lr is meant for
    backbone_rate: float = 1.0  # learning rate of a pretrained backbone, as a multiple of that of the rest
    weight_decay: float = 1e-4
    warmup_steps: int = 500  # steps of linear warm-up, starting from a thousandth of the learning rate
    schedule: Literal["step", "cosine"] = "step"
    """step: divide the learning rate by 10 at each milestone; cosine: half a cosine over all epochs, down to 0"""
    milestones: tuple[int, ...] = (8, 11)
    """epochs after which the learning rate drops (step schedule); scaled in proportion if only training.epochs is given"""
    clip_norm: float = 0.0  # maximum norm of the gradients, for clipping; 0: no clipping


@dataclass
class TrainingSettings:
    """Length, devices, checkpoints and output of a run."""

    weights: str = ""
    """weights to start from: a run folder, .ckpt, .safetensors or published .pth. Everything that fits is loaded, classes by name; the
    default learning rate is then lower and the warm-up shorter"""
    epochs: int = 12
    batch_size: int = 16  # images per optimiser step, over all devices and accumulated batches
    accumulate: int = 1  # batches whose gradients are accumulated for one step
    devices: int = 1  # GPUs (or CPU processes) per machine; 0: all
    nodes: int = 1  # number of machines
    global_ranking: bool = False
    """rank the examples of all devices together instead of per device; the losses then equal those of a single device with all images"""
    precision: Literal["32-true", "16-mixed", "bf16-mixed"] = "32-true"
    ema_decay: float = 0.0
    """decay of an exponential moving average (EMA) of the weights, which is then the model that is evaluated; 0: off"""
    validate_every: int = 1  # epochs between evaluations
    best: Literal["AP", "oLRP"] = "AP"
    """metric that selects the best checkpoint: highest AP or lowest oLRP, of masks if the detector has them"""
    patience: int = 0  # stop after this many evaluations in a row without improvement; 0: never
    max_minutes: float = 0.0
    """stop after this many minutes, at the end of a step; 0: never. The learning-rate schedule is not shortened. The report on the best
    checkpoint so far follows, which takes one more evaluation. --resume continues the run for as many minutes again"""
    autosave_minutes: float = 15.0
    """minutes between checkpoints within an epoch, in addition to those at its end; 0: never"""
    on_nan: Literal["stop", "skip"] = "stop"
    """what to do if a loss or gradient is not finite; stop: save the batch and stop with the last good checkpoint; skip: save the batch,
    skip it and continue, which on GPUs costs a synchronisation in each step"""
    seed: int = 0
    output: str = "runs"  # folder for runs; each run goes to <output>/<recipe>/<time>


@dataclass
class EvaluationSettings:
    """The evaluation and its report."""

    style: Literal["coco", "lvis"] = "coco"
    """evaluation rules; lvis: for lvis_v1_{train,val}.json, where each image is annotated only for some classes"""
    max_detections: int = 0
    """how many detections count per class and image (coco) or per image (lvis); 0: as published, 100 and 300"""
    pictures: int = 12  # images shown with their detections in the report, half of them the worst, half the best


@dataclass
class Recipe:
    """All settings of a run, in five groups.

    Examples:
        >>> from ranksort import Recipe
        >>> recipe = Recipe(name="mine")
        >>> recipe.model.detector, recipe.training.epochs = "faster_rcnn", 24
        >>> recipe.check()  # raises ValueError for settings that are out of range
        >>> Recipe.from_dict(recipe.as_dict()) == recipe
        True
    """

    name: str = ""  # names the run folder; by default the name of the recipe function
    data: DataSettings = field(default_factory=DataSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)

    def check(self) -> None:
        """Check all settings.

        Raises:
            ValueError: naming the option: a number is out of range, a word is not one of the choices, or the detector is not found or
                does not have the option.
        """
        training, model, optimizer, data = self.training, self.model, self.optimizer, self.data
        for group in ("data", "model", "optimizer", "training", "evaluation"):
            settings = getattr(self, group)
            for name, kind in get_type_hints(type(settings)).items():
                value = getattr(settings, name)
                if get_origin(kind) is Literal and value not in get_args(kind):
                    option = f"{group}.{name.replace('_', '-')}"
                    raise ValueError(f"--{option} must be {' or '.join(get_args(kind))}, got {value}")
        for option, value, least in (
            ("training.epochs", training.epochs, 1),
            ("training.batch-size", training.batch_size, 1),
            ("training.accumulate", training.accumulate, 1),
            ("training.devices", training.devices, 0),
            ("training.nodes", training.nodes, 1),
            ("training.validate-every", training.validate_every, 1),
            ("training.patience", training.patience, 0),
            ("training.max-minutes", training.max_minutes, 0),
            ("training.autosave-minutes", training.autosave_minutes, 0),
            ("training.seed", training.seed, 0),
            ("optimizer.lr", optimizer.lr, 0),
            ("optimizer.lr-batch-size", optimizer.lr_batch_size, 1),
            ("optimizer.backbone-rate", optimizer.backbone_rate, 0),
            ("optimizer.weight-decay", optimizer.weight_decay, 0),
            ("optimizer.warmup-steps", optimizer.warmup_steps, 0),
            ("optimizer.milestones", min(optimizer.milestones, default=0), 0),
            ("optimizer.clip-norm", optimizer.clip_norm, 0),
            ("model.min-size", min(model.min_size, *data.train_min_sizes, model.max_size), 1),
            ("model.num-classes", model.num_classes, 1),
            ("model.head-convs", model.head_convs, 0),
            ("model.detections-per-image", model.detections_per_image, 1),
            ("model.proposals", model.proposals, 1),
            ("data.workers", data.workers, 0),
            ("data.white", data.white, 0),
            ("data.min-box-size", data.min_box_size, 0),
            ("evaluation.max-detections", self.evaluation.max_detections, 0),
            ("evaluation.pictures", self.evaluation.pictures, 0),
        ):
            if not value >= least:  # as for NaN
                raise ValueError(f"--{option} must be {least} or more, got {value}")
        # Checkpoints are untrusted input: these limits keep a hostile one from exhausting the machine.
        for option, value, most in (
            ("model.min-size", max(model.min_size, *data.train_min_sizes, model.max_size), 20_000),
            ("model.num-classes", model.num_classes, 1_000_000),
            ("model.head-convs", model.head_convs, 100),
        ):
            if value > most:
                raise ValueError(f"--{option} must be {most} or less, got {value}")
        for option, share in (
            ("data.flip", data.flip),
            ("training.ema-decay", training.ema_decay),
            ("data.repeat-threshold", data.repeat_threshold),
            ("model.score-threshold", model.score_threshold),
            ("model.nms-threshold", model.nms_threshold),
        ):
            if not 0 <= share <= 1:
                raise ValueError(f"--{option} must be within 0..1, got {share}")
        for option, numbers in (("pixel-mean", model.pixel_mean), ("pixel-std", model.pixel_std)):
            if len(numbers) not in (0, 3):
                raise ValueError(
                    f"--model.{option} must be three numbers, or none for the backbone's own, got {numbers}"
                )
        if min(model.pixel_std, default=1) <= 0:
            raise ValueError(f"--model.pixel-std must be above 0, got {model.pixel_std}")
        if not 0 < model.prior < 1:
            raise ValueError(f"--model.prior must be between 0 and 1, got {model.prior}")
        detector = get_detector(model.detector)
        if model.upsampling != "nearest" and "upsampling" not in detector.settings:
            raise ValueError(f"--model.upsampling {model.upsampling} is for R-CNNs, not for {model.detector}")
        step = detector.channel_step
        if model.channels % step or model.channels < 64:
            raise ValueError(f"--model.channels must be a multiple of {step} and at least 64, got {model.channels}")

    def check_resumes(self, previous: "Recipe", moved_data: bool = False) -> None:
        """Check that a run can be resumed with these settings.

        Args:
            previous: the recipe of the run.
            moved_data: allow other paths of the training data, for callers that compare its contents.

        Raises:
            ValueError: a setting differs from the run's and would have no effect.
        """
        free = ["root", "val_annotations", "val_images", "workers", "epochs", "nodes", "devices", "validate_every"]
        free += ["patience", "max_minutes", "autosave_minutes", "on_nan"]
        free += ["output", "pictures", "max_detections", "milestones", "schedule"]
        # The engine sets these.
        free += ["num_classes", "pretrained_backbone", "frozen_stages", "train_batch_norm"]
        free += [] if previous.model.pretrained_backbone else ["backbone_rate"]
        free += ["train_annotations", "train_images"] if moved_data else []
        for group, settings in previous.as_dict().items():
            for key, before in settings.items() if isinstance(settings, dict) else []:
                now = self.as_dict()[group][key]
                # Files may have moved; whether weights fit the detector is checked later.
                if key in ("detector", "weights"):
                    before, now = PurePath(before).name, PurePath(now).name
                if now != before and key not in free:
                    was, is_now = (str(value) or "none" for value in (before, now))
                    raise ValueError(
                        f"a run cannot be resumed with a different --{group}.{key.replace('_', '-')} ({was} before, {is_now} now): "
                        "keep the old value, or start a new run"
                    )

    def as_dict(self) -> dict[str, Any]:
        """The settings as plain numbers, strings and lists, as stored in run folders and checkpoints.

        Raises:
            ValueError: the detector is a class, so it has no name to find it by.
        """
        if not isinstance(self.model.detector, str):
            raise ValueError("a recipe names its detector: set model.detector to file.py:Class instead of the class")
        values = dataclasses.asdict(self)
        values["model"]["detector"] = as_named(self.model.detector)
        return json.loads(json.dumps(values))

    @staticmethod
    def from_dict(values: dict[str, Any]) -> "Recipe":
        """The inverse of `as_dict`. Fields added since the recipe was saved take their defaults.

        The values are untrusted. A detector that is not built in therefore has to be named again; see `detectors.py`.

        Raises:
            ValueError: a field is unknown, as in a recipe of a newer version, or `values` is not what `as_dict` returns.
        """
        if not isinstance(values, dict) or not isinstance(values.get("name"), str):
            raise ValueError("these are not the settings of a ranksort recipe")
        recipe = Recipe(name=values["name"])
        known = recipe.as_dict()
        for group, settings in values.items():
            if group == "name":
                continue
            if group not in known:
                raise ValueError(f"this version of ranksort has no setting {group}: update ranksort")
            if not isinstance(settings, dict):
                raise ValueError(f"the settings {group} of a recipe cannot be {settings!r}")
            for key, value in settings.items():
                if key not in known[group]:
                    raise ValueError(f"this version of ranksort has no setting {group}.{key}: update ranksort")
                if not _is_like(value, known[group][key]):
                    raise ValueError(f"the setting {group}.{key} of a recipe cannot be {value!r}")
                setattr(getattr(recipe, group), key, tuple(value) if isinstance(value, list) else value)
        recipe.model.detector = recorded(str(recipe.model.detector))
        return recipe


def _is_like(value: Any, known: Any) -> bool:
    """Whether a plain value can replace another one; lists hold numbers."""
    if isinstance(value, list):
        return isinstance(known, list) and all(type(number) in (int, float) for number in value)
    return type(value) is type(known) or (type(value) is int and type(known) is float)
