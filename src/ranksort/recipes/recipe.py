"""The settings of a training run. A recipe is a function which returns a `Recipe`; deriving one from another is a few lines:

def my_recipe() -> Recipe:
    recipe = ranksort_atss_r50_fpn_1x_coco()
    recipe.model.backbone = "resnet18"
    return recipe

One which starts from a multi-scale recipe sets data.train_min_sizes along with model.min_size: the one is for training, the other for
evaluation. Where only model.min_size is given to `create_model` or on the command line, it is for both.

What stands beside or below a setting is its help on the command line.
"""

import dataclasses
import json
import os
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import Any, Literal, get_args, get_origin, get_type_hints

from .detectors import DetectorName, as_named, get_detector, recorded


@dataclass
class DataSettings:
    """Where the images are, and how they are prepared for training."""

    root: str = ""
    """folder of images and COCO annotations in the layout of COCO, Roboflow or a single file, which is divided by image into training and
    validation"""
    train_annotations: str = ""  # annotation file to train on, where it is not found below the root
    train_images: str = ""  # folder of the images to train on
    val_annotations: str = ""  # annotation file to evaluate on
    val_images: str = ""  # folder of the images to evaluate on
    train_min_sizes: tuple[int, ...] = ()
    """short sides in pixels, one drawn at random for each training image; none: model.min-size, which replaces a recipe's where it is
    given alone"""
    flip: float = 0.5  # probability of a horizontal flip
    augmentation: Literal["flip", "jitter", "ssd"] = "flip"
    """what is done to training images besides resizing; jitter: scaled by .5 to 2, cut or filled to their size, and colours changed a
    little, too, for small data; ssd: colours are distorted, margins added and parts cut out, too"""
    keep_empty_images: bool = False  # train on images without objects, too
    crowd: Literal["drop", "keep"] = "drop"
    """what to do with annotations marked as crowd; keep: take them for objects, as some exporters mark every mask so"""
    min_box_size: float = 1.0  # objects with a side below this many pixels are not trained on
    repeat_threshold: float = 0.0
    """images with a class which is in less than this share of them are repeated within an epoch, as for LVIS; 0: none"""
    white: float = 0.0
    """the value that is white in greyscale images of more than 8 bits, such as 4095; 0: found from the images to train on, and kept"""
    workers: int = 4  # processes which load images, for each device; 0: load in the main process

    def absolute(self) -> "DataSettings":
        """The same with paths that mean the same from every working directory."""
        paths = ("root", "train_annotations", "train_images", "val_annotations", "val_images")
        return replace(self, **{name: os.path.abspath(path) for name in paths if (path := getattr(self, name))})


@dataclass
class ModelSettings:
    """What the detector is made of, and how it reports."""

    detector: DetectorName = "atss"
    """which detector: one of ours, or file.py:Class for one of your own; solov2_light has a head of half the width, for images of half
    the size"""
    loss: Literal["rank_sort", "average_lrp", "average_precision", "focal", "quality_focal", "varifocal"] = "rank_sort"
    """what trains it, all else being equal; those but rank_sort are to compare with"""
    backbone: str = "resnet50"  # a ResNet or ResNeXt of torchvision, or timm/<model>
    pretrained_backbone: bool = True  # start training from ImageNet weights
    frozen_stages: int = 1  # backbone stages which keep their weights, the stem with them; -1: none
    train_batch_norm: bool = False  # normalise by the statistics of the batch instead of the stored ones
    deformable_convs: bool = False
    """modulated deformable 3x3 convolutions (DCNv2) in the stages 2 to 4 of a ResNet or ResNeXt"""
    upsampling: Literal["nearest", "carafe"] = "nearest"  # how the pyramid of an R-CNN goes from coarse to fine
    proposals: int = 1000
    """most regions of an image which an R-CNN looks into; fewer are faster, and enough for small images"""
    channels: int = 256  # channels of the pyramid and the heads
    head_convs: int = 4  # depth of the towers of a dense head
    prior: float = 0.01
    """class probability which training starts from; ranking leaves the level of the scores open, so it remains felt"""
    num_classes: int = 80  # classes of a model made without data; training takes them from the annotation file
    min_size: int = 800
    """short side in pixels after resizing; for yolact, both sides; in training, data.train-min-sizes where they are given"""
    max_size: int = 1333  # bound of the long side in pixels
    pixel_mean: tuple[float, ...] = ()
    """mean of each RGB channel, in 0..255, subtracted from the images; none: that which the backbone was pretrained with"""
    pixel_std: tuple[float, ...] = ()
    """deviation of each RGB channel, in 0..255, which the images are divided by; none: as for the mean"""
    score_threshold: float = 0.05
    """least score of a detection; the R-CNNs' .4 and LVIS's .6 are the published ones, and may hide much after short runs"""
    nms_threshold: float = 0.6
    """IoU above which the lower of two detections of a class is dropped; solov2 lowers scores instead"""
    detections_per_image: int = 100  # most detections reported for an image

    @property
    def has_masks(self) -> bool:
        """Whether the detector learns and predicts masks."""
        return get_detector(self.detector).has_masks


@dataclass
class OptimizerSettings:
    """The optimiser and its schedule."""

    algorithm: Literal["sgd", "adamw"] = "sgd"  # stochastic gradient descent with momentum .9, or AdamW
    lr: float = 0.01  # learning rate for `lr_batch_size` images; scaled linearly to the actual batch
    lr_batch_size: int = 16  # images in a batch which `lr` is meant for
    weight_decay: float = 1e-4
    warmup_steps: int = 500  # steps in which the learning rate rises linearly from a thousandth
    schedule: Literal["step", "cosine"] = "step"
    """a tenth after each milestone, or half a cosine over the epochs down to 0"""
    milestones: tuple[int, ...] = (8, 11)
    """epochs after which the step schedule falls; where training.epochs is given alone, they move along in proportion"""
    clip_norm: float = 0.0  # largest norm of the gradient; 0: not clipped


@dataclass
class TrainingSettings:
    """How long, on what, and where the results go."""

    weights: str = ""
    """what to start from: a run folder, .ckpt, .safetensors or published .pth. All that fits is taken, classes by name; by default the
    learning rate is lower then, and the warm-up shorter"""
    epochs: int = 12
    batch_size: int = 16  # images for each step of the optimiser, over all devices and accumulated batches
    accumulate: int = 1  # batches whose gradients are added up for a step
    devices: int = 1  # GPUs (or CPU processes) on each machine; 0: all
    nodes: int = 1  # machines
    global_ranking: bool = False
    """rank the images of all devices as one batch, not those of each by themselves; the losses are then those of one device with all
    images"""
    precision: Literal["32-true", "16-mixed", "bf16-mixed"] = "32-true"
    ema_decay: float = 0.0
    """decay of an exponential moving average of the weights, which is what gets evaluated; 0: off"""
    validate_every: int = 1  # epochs between evaluations
    best: Literal["AP", "oLRP"] = "AP"
    """by which number the best evaluation is chosen, whose weights are kept and reported on: the highest AP or the lowest oLRP, of masks
    where there are any"""
    patience: int = 0  # stop after so many evaluations in a row that were not better than the best; 0: never
    max_minutes: float = 0.0
    """stop after so many minutes, at the end of a step; 0: never. The schedule is not shortened: the report on the best evaluation so far
    follows, which takes the time of one more, and --resume goes on, with as many minutes again"""
    autosave_minutes: float = 15.0
    """minutes after which a checkpoint is written within an epoch, besides those at its end; 0: never"""
    on_nan: Literal["stop", "skip"] = "stop"
    """what to do where a loss or a gradient is not finite: keep the batch and stop, with the last good checkpoint; or keep it, leave it out
    and go on, which on GPUs costs a wait for each step"""
    seed: int = 0
    output: str = "runs"  # folder for runs; each gets <output>/<recipe>/<time>


@dataclass
class EvaluationSettings:
    """What the report holds."""

    style: Literal["coco", "lvis"] = "coco"
    """whose rules; lvis: of files lvis_v1_{train,val}.json, with classes which are known for some images only"""
    max_detections: int = 0
    """how many detections count of each class in an image (coco) or of an image (lvis); 0: as published, 100 and 300"""
    pictures: int = 12  # images drawn with their detections in the report: the worst and the best, half of each


@dataclass
class Recipe:
    """All settings of a run, in five groups."""

    name: str = ""  # by which its run folder is called; by default the name of its function
    data: DataSettings = field(default_factory=DataSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)

    def check(self) -> None:
        """Raises ValueError, naming the option, where a number is out of its range, a word is none of those that are possible, or the
        detector is not found or has no such option.
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
            ("optimizer.lr-batch-size", optimizer.lr_batch_size, 1),
            ("optimizer.warmup-steps", optimizer.warmup_steps, 0),
            ("model.min-size", min(model.min_size, *data.train_min_sizes, model.max_size), 1),
            ("model.num-classes", model.num_classes, 1),
            ("model.head-convs", model.head_convs, 0),
            ("model.detections-per-image", model.detections_per_image, 1),
            ("model.proposals", model.proposals, 1),
            ("data.workers", data.workers, 0),
            ("data.white", data.white, 0),
            ("evaluation.max-detections", self.evaluation.max_detections, 0),
            ("evaluation.pictures", self.evaluation.pictures, 0),
        ):
            if value < least:
                raise ValueError(f"--{option} must be {least} or more, got {value}")
        # Anybody's checkpoint may say anything: so much, and a machine is not brought down by it.
        for option, value, most in (
            ("model.min-size", max(model.min_size, *data.train_min_sizes, model.max_size), 20_000),
            ("model.num-classes", model.num_classes, 1_000_000),
            ("model.head-convs", model.head_convs, 100),
        ):
            if value > most:
                raise ValueError(f"--{option} must be {most} or less, got {value}")
        for option, share in (
            ("data.flip", data.flip),
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
            raise ValueError(f"--model.upsampling {model.upsampling} is for the R-CNNs, not for {model.detector}")
        step = detector.channel_step
        if model.channels % step or model.channels < 64:
            raise ValueError(f"--model.channels must be a multiple of {step} from 64 on, got {model.channels}")

    def check_resumes(self, previous: "Recipe", moved_data: bool = False) -> None:
        """Raises ValueError where settings differ from those of a run to go on with and would not take effect.

        `moved_data` allows the training data to be elsewhere, for those who compare what they hold.
        """
        free = ["root", "val_annotations", "val_images", "workers", "epochs", "nodes", "devices", "validate_every"]
        free += ["patience", "max_minutes", "autosave_minutes", "on_nan"]
        free += ["output", "pictures", "max_detections", "milestones", "schedule"]
        free += ["num_classes", "pretrained_backbone", "frozen_stages", "train_batch_norm"]  # the engine sets these
        free += ["train_annotations", "train_images"] if moved_data else []
        for group, settings in previous.as_dict().items():
            for key, before in settings.items() if isinstance(settings, dict) else []:
                now = self.as_dict()[group][key]
                if key in ("detector", "weights"):  # files may have moved; whether weights fit a detector is seen later
                    before, now = PurePath(before).name, PurePath(now).name
                if now != before and key not in free:
                    raise ValueError(
                        f"a run cannot be resumed with another --{group}.{key.replace('_', '-')} ({before} before, {now} now): "
                        "leave it, or begin a new run"
                    )

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists, as they go into run folders and checkpoints.

        Raises:
            ValueError: where the detector is a class, which has no name to find it by.
        """
        if not isinstance(self.model.detector, str):
            raise ValueError("a recipe names its detector: set model.detector to file.py:Class instead of the class")
        values = dataclasses.asdict(self)
        values["model"]["detector"] = as_named(self.model.detector)
        return json.loads(json.dumps(values))

    @staticmethod
    def from_dict(values: dict[str, Any]) -> "Recipe":
        """The inverse of `as_dict`. Fields which a newer version added take their defaults.

        The values may be anybody's. So a detector that is not ours has to be named again, see `detectors.py`.

        Raises:
            ValueError: where a field is not known, as with a recipe of a newer version, or `values` are not such as `as_dict` returns.
        """
        if not isinstance(values, dict) or not isinstance(values.get("name"), str):
            raise ValueError("these are not the settings of a recipe of ranksort")
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
    """Whether a plain value can take the place of another; lists are of numbers."""
    if isinstance(value, list):
        return isinstance(known, list) and all(type(number) in (int, float) for number in value)
    return type(value) is type(known) or (type(value) is int and type(known) is float)
